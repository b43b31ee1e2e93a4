"""The one contract that every way of joining text and image keeps."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import keras
from keras import KerasTensor

from mmfusion.errors import ConfigError, told_by
from mmfusion.fusion.cache_size import CacheSize
from mmfusion.fusion.checks import check_options_are_known, is_made_of, told_cache
from mmfusion.fusion.cost import Cost, block_cost
from mmfusion.layers import TransformerBlock
from mmfusion.layers.attention_options import check_kernel
from mmfusion.layers.cache import BlockCache
from mmfusion.layers.checks import check_rate, check_size, check_tokens, checked_mask
from mmfusion.layers.masks import without_masked


class FusionCache(NamedTuple):
    """What step by step decoding carries through a fusion.

    Attributes:
        layers: One entry a layer, of a form that is the style's own (a `mmfusion.layers.BlockCache`, the state of a recurrent
            cell). Tensors inside have the batch as their first axis or are scalars, so that a search over beams can reorder
            them.
    """

    layers: tuple[Any, ...]


class FusionOutput(NamedTuple):
    """What every fusion returns.

    Attributes:
        text: ``float[B, T, D]``, the text tokens, informed by the image.
        image: ``float[B, N, D']``, the image as the style leaves it: its patches (informed by the text where the style does
            that), or the queries or latents that stand for them; None in a step with a cache, where the image is in the cache.
        scores: ``float32[B, layers, heads, T, P]``, attention from each text token to each patch, rows summing to 1 (or 0 where
            there was nothing to attend to), or None if not asked for.
        cache: The advanced `FusionCache`, or None.
    """

    text: KerasTensor
    image: KerasTensor | None
    scores: KerasTensor | None = None
    cache: FusionCache | None = None


class Streams(NamedTuple):
    """The inputs of a fusion after its checks.

    Attributes:
        text: ``float[B, T, D]``, zero behind its mask (without a cache).
        image: ``float[B, P, Di]``, zero behind its mask; None where the image is in the cache.
        text_mask: ``bool[B, T]`` (with a cache ``bool[B, L]``), or None if all are real.
        image_mask: ``bool[B, P]``, or None if all are real.
    """

    text: KerasTensor
    image: KerasTensor | None
    text_mask: KerasTensor | None
    image_mask: KerasTensor | None


class Fusion(keras.layers.Layer):
    """Base of all fusion styles: their common arguments, their hooks, and what they check of their inputs.

    A style implements ``call(text, image, text_mask=None, image_mask=None, causal=False, cache=None,
    return_scores=False, training=None) -> FusionOutput``, `init_cache`, `cost` and `cache_size`; where it differs from what
    stands here, also `supports_causal`, `informs_text`, `text_to_patches`, `image_tokens`, `image_tokens_mask` and `image_width`.

    Masks are ``bool``, ``True`` = real token; what is behind them never changes the result at real tokens.

    Args:
        dim: Width of the text tokens, D.
        image_dim: Width of the image tokens, Di. Default D.
        depth: Layers. Default 2.
        num_heads: Attention heads. Default 4.
        mlp_ratio: Hidden width of the feed-forward part over that of its tokens. Default 4.
        dropout: Rate after attention and feed-forward. Default 0.
        attention_dropout: Rate at which attention weights are dropped. Default 0.
        stochastic_depth: Rate at which whole branches of the last layer are dropped; it grows linearly from 0 with depth.
            Default 0.
        layer_scale: Initial gain of each branch; None has no gain. Default None.
        kernel: How attention is computed, see `mmfusion.layers.Attention`. Default ``"exact"``.
        **kwargs: Keras's own layer arguments.

    Raises:
        ConfigError: If an option is unknown, a size is below 1, a rate is outside of ``[0, 1)``, the heads do not divide the
            width, or the kernel is unknown or keeps no weights to drop.

    Example:
        >>> from mmfusion.fusion import CrossFusion, Fusion
        >>> isinstance(CrossFusion(dim=8, depth=1, num_heads=2), Fusion)
        True
    """

    cache_entry: ClassVar[type] = BlockCache
    """What a `FusionCache` of this style holds, one a layer."""

    def __init__(
        self,
        *,
        dim: int,
        image_dim: int | None = None,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        layer_scale: float | None = None,
        kernel: str = "exact",
        **kwargs: Any,
    ) -> None:
        check_options_are_known(type(self), kwargs)
        super().__init__(**kwargs)
        self.supports_masking = True
        self.dim = dim
        self.image_dim = dim if image_dim is None else image_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.stochastic_depth = stochastic_depth
        self.layer_scale = layer_scale
        self.kernel = kernel
        for name in ("dim", "image_dim", "depth", "num_heads"):
            check_size(getattr(self, name), name, self.name)
        for name in ("dropout", "attention_dropout", "stochastic_depth"):
            check_rate(getattr(self, name), name, self.name)
        check_kernel(kernel, attention_dropout, self.name, "attention_dropout", "set dropout instead, or kernel='exact'")
        self.check_heads(self.dim)

    @property
    def supports_causal(self) -> bool:
        """Whether the text can be read left to right; a model that captions refuses a fusion that cannot."""
        return True

    @property
    def informs_text(self) -> bool:
        """Whether the text comes out informed by the image; a head that reads fused text refuses a fusion where it does not."""
        return True

    @property
    def text_to_patches(self) -> str | None:
        """How text tokens attend to patches in one step, by the attention that is asked for its scores where the fusion is.

        ``"cross"``: the patches are its context; ``"joint"``: they come first in the one stream that attends to itself; None:
        text looks at patches by way of other tokens, or not by an `mmfusion.layers.Attention`.
        """
        return None

    @property
    def reads_text_alone(self) -> bool:
        """Whether `text_tokens` can read a text without an image."""
        return False

    def text_tokens(
        self, text: KerasTensor, text_mask: KerasTensor | None = None, causal: bool = False, training: bool | None = None
    ) -> KerasTensor:
        """The text as the style's own layers read it where no image is given: one stack for both, as in BLIP.

        Args:
            text: ``float[B, T, D]``.
            text_mask: ``bool[B, T]``, ``True`` = real token. Default: all real.
            causal: Whether a token sees only itself and what precedes it. Default False.
            training: Whether dropout is active.

        Returns:
            ``float[B, T, D]``.

        Raises:
            ConfigError: If the style cannot (`reads_text_alone`), or rank, width or dtype of text or mask is wrong.
        """
        self.check_text_alone()
        raise NotImplementedError(f"{type(self).__name__} does not implement text_tokens")

    @property
    def image_width(self) -> int:
        """The width D' of what `image_tokens` returns."""
        return self.image_dim

    def image_tokens(
        self, image: KerasTensor, image_mask: KerasTensor | None = None, training: bool | None = None
    ) -> KerasTensor:
        """The image as the fusion holds it before any text is known.

        Args:
            image: ``float[B, P, Di]``.
            image_mask: ``bool[B, P]``, ``True`` = real patch.
            training: Whether dropout is active.

        Returns:
            ``float[B, N, D']``: the image unchanged, unless the style reads it into queries or latents first. Which of them are
            real says `image_tokens_mask`.
        """
        return image

    def image_tokens_mask(self, image_mask: KerasTensor | None) -> KerasTensor | None:
        """Which tokens of `image_tokens` and of `FusionOutput.image` are real.

        Args:
            image_mask: ``bool[B, P]``, ``True`` = real patch, or None if all are real.

        Returns:
            ``bool[B, N]``, or None if all are: the mask unchanged, unless queries or latents stand for the patches, which are
            all real where the image has a real patch.
        """
        return image_mask

    def __call__(self, *arguments: Any, **options: Any) -> FusionOutput:
        """Calls the fusion; in a functional model of Keras too."""
        # A layer inside knows its own name alone.
        with told_by(self.name):
            output = super().__call__(*arguments, **options)
        return output if isinstance(output, FusionOutput) else FusionOutput(*output)

    def compute_output_spec(self, *arguments: Any, **options: Any) -> tuple[KerasTensor, ...]:
        """Shapes and dtypes of what comes out, without what is None: Keras's graphs of layers have no place for it."""
        return tuple(x for x in super().compute_output_spec(*arguments, **options) if x is not None)

    def init_cache(
        self,
        batch_size: int | KerasTensor,
        max_length: int,
        image: KerasTensor,
        image_mask: KerasTensor | None = None,
    ) -> FusionCache:
        """Prepares decoding: room for `max_length` text tokens, and all that depends on the image alone, computed once."""
        raise NotImplementedError(f"{type(self).__name__} does not implement init_cache")

    def read_image(self, image: KerasTensor, image_mask: KerasTensor | None = None) -> FusionCache | None:
        """All that depends on the image alone, computed once for many texts that are read whole.

        Given as `cache`, it stands for the image; the texts may be more than its rows, and consecutive ones then share a row.

        Args:
            image: ``float[B, P, Di]``.
            image_mask: ``bool[B, P]``, ``True`` = real patch.

        Returns:
            The `FusionCache`, or None where what is made of the image depends on the text.
        """
        return None

    def holds_text(self, cache: FusionCache) -> bool:
        """Whether a cache of this fusion is from `init_cache`, for decoding, and not from `read_image`."""
        return True

    def owns_cache(self, cache: FusionCache) -> bool:
        """Whether a cache has the form that `init_cache` of this fusion gives."""
        return is_made_of(cache, self.cache_entry, self.depth)

    def cost(self, text_length: int, image_length: int) -> Cost:
        """What a forward pass of one pair costs, both streams read whole (not causal).

        Args:
            text_length: Text tokens, T.
            image_length: Image tokens, P.

        Returns:
            The `Cost`.

        Raises:
            ConfigError: If a length is no whole number of at least 1.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement cost")

    def cache_size(self, text_length: int, image_length: int) -> CacheSize:
        """What the cache of `init_cache` holds, for one image and each text about it.

        Args:
            text_length: Room in text tokens, T.
            image_length: Image tokens, P.

        Returns:
            The `CacheSize`.

        Raises:
            ConfigError: If a length is no whole number of at least 1.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement cache_size")

    def make_block(self, name: str, index: int = 0, **options: Any) -> TransformerBlock:
        """A block with the common arguments.

        Args:
            name: Its name, unique in the fusion.
            index: Its layer, 0 to depth - 1, which decides how often its branches are dropped.
            **options: Further arguments of `mmfusion.layers.TransformerBlock`, which count before the common ones.
        """
        common = {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "stochastic_depth": self.stochastic_depth_at(index),
            "layer_scale": self.layer_scale,
            "kernel": self.kernel,
        }
        return TransformerBlock(**{**common, **options}, dtype=self.dtype_policy, name=name)

    def cost_of_block(self, tokens: int, width: int | None = None, **options: Any) -> Cost:
        """What a block that `make_block` makes costs.

        Args:
            tokens: Its tokens.
            width: Their width. Default D.
            **options: Further arguments of `mmfusion.fusion.cost.block_cost`, which count before the common ones.
        """
        common = {"num_heads": self.num_heads, "mlp_ratio": self.mlp_ratio, "kernel": self.kernel}
        return block_cost(tokens, self.dim if width is None else width, **{**common, **options})

    def make_norm(self, name: str, epsilon: float = 1e-6) -> keras.layers.LayerNormalization:
        """A normalisation of the tokens."""
        return keras.layers.LayerNormalization(epsilon=epsilon, dtype=self.dtype_policy, name=name)

    def stochastic_depth_at(self, index: int) -> float:
        """The rate of layer `index`: linear from 0 at the first to `stochastic_depth` at the last."""
        return self.stochastic_depth * index / max(self.depth - 1, 1)

    def check_heads(self, width: int) -> None:
        """Refuses a width that the heads do not divide."""
        if width % self.num_heads:
            raise ConfigError(
                "the heads do not divide the width",
                where=self.name,
                expected=f"num_heads that divides {width}",
                found=self.num_heads,
            )

    def check_lengths(self, text_length: int, image_length: int) -> None:
        """Refuses what is no length. Every style's `cost` and `cache_size` start here."""
        for name, length in (("text_length", text_length), ("image_length", image_length)):
            check_size(length, name, self.name)

    def check_causal(self) -> None:
        """Refuses what only a fusion that can be causal does."""
        if not self.supports_causal:
            raise ConfigError("this fusion cannot be causal", where=self.name, fix="choose another style")

    def check_text_alone(self) -> None:
        """Refuses what only a fusion that reads a text alone does."""
        if not self.reads_text_alone:
            fix = "choose style cross with direction text"
            raise ConfigError("this fusion cannot read a text alone", where=self.name, found=type(self).__name__, fix=fix)

    def checked(
        self,
        text: KerasTensor,
        image: KerasTensor | None,
        text_mask: KerasTensor | None,
        image_mask: KerasTensor | None,
        causal: bool,
        cache: FusionCache | None,
    ) -> Streams:
        """The inputs of a call with zeros behind their masks; refuses what does not fit. Every style's call starts here."""
        if causal:
            self.check_causal()
        if cache is not None:
            check_tokens(text, "text", self.name, self.dim, "dim")
            if not self.owns_cache(cache):
                raise ConfigError(
                    "the cache is of another fusion",
                    where=self.name,
                    expected=f"what init_cache of this {type(self).__name__} gives",
                    found=told_cache(cache),
                )
            if not self.holds_text(cache):
                text_mask = self._mask(text_mask, "text_mask", text, text.shape[1])
                return Streams(without_masked(text, text_mask), None, text_mask, None)
            if not causal:
                raise ConfigError(
                    "a cache holds what came before, so decoding with it is causal", where=self.name, fix="pass causal=True"
                )
            # The mask is over places of the cache, whose number the style's own layers know.
            return Streams(text, None, self._mask(text_mask, "text_mask", text, None), None)
        if image is None:
            raise ConfigError("a fusion got no image", where=self.name, expected="an image, or a cache made of one")
        text, text_mask = self.checked_text(text, text_mask)
        image, image_mask = self.checked_image(image, image_mask)
        sizes = text.shape[0], image.shape[0]
        if None not in sizes and sizes[0] != sizes[1]:
            raise ConfigError("text and image differ in batch size", where=self.name, expected=sizes[0], found=sizes[1])
        return Streams(text, image, text_mask, image_mask)

    def checked_text(self, text: KerasTensor, text_mask: KerasTensor | None) -> tuple[KerasTensor, KerasTensor | None]:
        """Text tokens with zeros behind their mask, and the mask; refuses what does not fit."""
        check_tokens(text, "text", self.name, self.dim, "dim")
        text_mask = getattr(text, "_keras_mask", None) if text_mask is None else text_mask
        text_mask = self._mask(text_mask, "text_mask", text, text.shape[1])
        return without_masked(text, text_mask), text_mask

    def checked_image(self, image: KerasTensor, image_mask: KerasTensor | None) -> tuple[KerasTensor, KerasTensor | None]:
        """Image tokens with zeros behind their mask, and the mask; refuses what does not fit."""
        if not self.built:
            raise ConfigError("the fusion has no weights yet", where=self.name, fix="call it once on a text and an image first")
        check_tokens(image, "image", self.name, self.image_dim, "image_dim")
        image_mask = getattr(image, "_keras_mask", None) if image_mask is None else image_mask
        image_mask = self._mask(image_mask, "image_mask", image, image.shape[1])
        return without_masked(image, image_mask), image_mask

    def _mask(self, mask: KerasTensor | None, name: str, tokens: KerasTensor, length: int | None) -> KerasTensor | None:
        return checked_mask(mask, name, self.name, tokens.shape, length, ranks=(2,))

    def get_config(self) -> dict[str, Any]:
        """The common arguments; a style adds its own."""
        names = (
            "dim", "image_dim", "depth", "num_heads", "mlp_ratio", "dropout", "attention_dropout", "stochastic_depth",
            "layer_scale", "kernel",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
