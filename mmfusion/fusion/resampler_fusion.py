"""Resampler fusion: the image becomes a few latents, which another style joins with the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError, told_by
from mmfusion.fusion.cache_size import CacheSize
from mmfusion.fusion.checks import is_made_of
from mmfusion.fusion.cost import Cost, attention_cost, dense_cost, feed_forward_cost
from mmfusion.fusion.fusion import Fusion, FusionCache, FusionOutput
from mmfusion.fusion.latents import latents_mask, through_latents
from mmfusion.fusion.scores import renormalized
from mmfusion.layers import PerceiverResampler
from mmfusion.layers.masks import without_masked


class ResamplerCache(NamedTuple):
    """What decoding carries.

    Attributes:
        fusion: The inner style's cache.
        reading: ``float32[B, N, P]``, what each latent has read of the patches.
    """

    fusion: FusionCache
    reading: KerasTensor


@keras.saving.register_keras_serializable(package="mmfusion")
class ResamplerFusion(Fusion):
    """A Perceiver resampler reads the image into N latents; `inner`, any other style, joins them with the text.

    ``z = PerceiverResampler(image); output = inner(text, z)``. However many patches there are, of one image, of several or of the
    frames of a video, the inner style sees N tokens.

    Cost of a pass with P image tokens, N latents, widths D and Di, R resampler layers, H heads, ratio r: that of the inner style
    with N image tokens, and ``2·R·(2·(P + N)·D² + 2·N·D²·(1 + r) + 2·N·(P + N)·D)`` floating point operations;
    ``R·((P + N)·3·D + N·D·(4 + r))`` numbers kept for the gradient, and ``R·H·N·(P + N)`` more with the exact kernel. Where Di is
    not D, there are ``2·P·D·Di`` operations and ``P·Di`` numbers more. `cost` says them for given sizes.

    Args:
        dim: Width of text tokens and latents, D.
        image_dim: Width of the image tokens, Di. Default D.
        depth: Layers of the inner style. Default 2.
        num_heads: Attention heads. Default 4.
        mlp_ratio: Hidden width of the feed-forward parts over D. Default 4.
        dropout: Rate after attention and feed-forward. Default 0.
        attention_dropout: Rate of attention weights. Default 0.
        stochastic_depth: Rate of dropping whole branches of the inner style's last layer. Default 0.
        layer_scale: Initial gain of each branch of the inner style; None has no gain. Default None.
        kernel: How attention is computed, see `mmfusion.layers.Attention`. Default ``"exact"``.
        num_latents: Latents, N. Default 32.
        resampler_depth: Layers of the resampler, R. Default 2.
        inner: Name of the style that joins text and latents, see `mmfusion.fusion.STYLES`. Default ``"cross"``.
        inner_options: What that style alone takes. Default none.
        fusion: A ready inner fusion instead, of widths D; `inner` and `inner_options` then say nothing.

    Call arguments:
        text: ``float[B, T, D]``.
        image: ``float[B, P, Di]``; may be None when a cache is given.
        text_mask: ``bool[B, T]``, ``True`` = real token; with a cache over its L places, ``bool[B, L]``.
        image_mask: ``bool[B, P]``, ``True`` = real patch; the latents of an image without any are as if masked.
        causal: Whether the text is read left to right.
        cache: A `FusionCache` from `init_cache`, for step by step decoding.
        return_scores: Whether to return the attention from text to image: the inner style's, from text to latents, times the
            latents' to the patches (the mean over the resampler's layers and heads, without what latents gave each other),
            renormalised.
        training: Whether dropout is active.

    Returns:
        `FusionOutput`; its image is what the inner style leaves of the latents.

    Raises:
        ConfigError: If `inner` is unknown or a resampler itself, does not know its options, is asked to be causal where it
            cannot, or an input does not fit.

    Example:
        >>> import numpy as np
        >>> from mmfusion.fusion import ResamplerFusion
        >>> fusion = ResamplerFusion(dim=8, depth=1, num_heads=2, num_latents=3, inner="gated")
        >>> output = fusion(np.ones((1, 2, 8), "float32"), np.ones((1, 50, 8), "float32"), return_scores=True)
        >>> tuple(output.image.shape), tuple(output.scores.shape)
        ((1, 3, 8), (1, 1, 2, 2, 50))

    Source: Alayrac et al., Flamingo, 2022 (arXiv:2204.14198), section 3.1.1.
    """

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
        num_latents: int = 32,
        resampler_depth: int = 2,
        inner: str = "cross",
        inner_options: Mapping[str, Any] | None = None,
        fusion: Fusion | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            dim=dim,
            image_dim=image_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            attention_dropout=attention_dropout,
            stochastic_depth=stochastic_depth,
            layer_scale=layer_scale,
            kernel=kernel,
            **kwargs,
        )
        self.num_latents = num_latents
        self.resampler_depth = resampler_depth
        self.inner = inner
        self.inner_options = dict(inner_options or {})
        self._given = fusion is not None
        self.fusion = self._make_inner() if fusion is None else fusion
        if (self.fusion.dim, self.fusion.image_dim) != (dim, dim):
            raise ConfigError(
                "the inner fusion has other widths than text and latents",
                where=self.name,
                expected=f"dim={dim}, image_dim={dim}",
                found=f"dim={self.fusion.dim}, image_dim={self.fusion.image_dim}",
            )
        self.resampler = PerceiverResampler(
            num_latents=num_latents,
            depth=resampler_depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            dim=dim,
            dropout=dropout,
            attention_dropout=attention_dropout,
            kernel=kernel,
            dtype=self.dtype_policy,
            name="resampler",
        )

    def _make_inner(self) -> Fusion:
        from mmfusion.fusion import STYLES  # where this style is too

        styles = {name: style for name, style in STYLES.items() if not issubclass(style, ResamplerFusion)}
        if self.inner not in styles:
            raise ConfigError("unknown inner style", where=self.name, expected=" or ".join(styles), found=repr(self.inner))
        common = {
            name: getattr(self, name)
            for name in (
                "dim", "depth", "num_heads", "mlp_ratio", "dropout", "attention_dropout", "stochastic_depth", "layer_scale",
                "kernel",
            )
        }  # fmt: skip
        with told_by(self.name):
            return styles[self.inner](**{**common, **self.inner_options}, dtype=self.dtype_policy, name="fusion")

    @property
    def supports_causal(self) -> bool:
        """As the inner style."""
        return self.fusion.supports_causal

    @property
    def informs_text(self) -> bool:
        """As the inner style."""
        return self.fusion.informs_text

    @property
    def image_width(self) -> int:
        """As the inner style, which gets the latents."""
        return self.fusion.image_width

    def build(self, text_shape: Sequence[int | None] | None = None, image_shape: Sequence[int | None] | None = None) -> None:
        """Builds the resampler and the inner style; the widths are known from the constructor."""
        self.resampler.build((None, None, self.image_dim))
        if not self.fusion.built:
            self.fusion.build((None, None, self.dim), (None, self.num_latents, self.dim))
        self.built = True

    def image_tokens(
        self, image: KerasTensor, image_mask: KerasTensor | None = None, training: bool | None = None
    ) -> KerasTensor:
        """The latents, or what the inner style makes of them before any text: ``float[B, P, Di]`` to ``float[B, N, D']``."""
        image, image_mask = self.checked_image(image, image_mask)
        latents, mask, _ = self._read(image, image_mask, False, training)
        return self.fusion.image_tokens(latents, image_mask=mask, training=training)

    def image_tokens_mask(self, image_mask: KerasTensor | None) -> KerasTensor | None:
        """Of what the inner style makes of the latents, ``bool[B, N]``; see `Fusion`."""
        return self.fusion.image_tokens_mask(latents_mask(image_mask, self.num_latents))

    def init_cache(
        self,
        batch_size: int | KerasTensor,
        max_length: int,
        image: KerasTensor,
        image_mask: KerasTensor | None = None,
    ) -> FusionCache:
        """Prepares decoding: the latents read the image once, and the inner style prepares with them."""
        self.check_causal()
        image, image_mask = self.checked_image(image, image_mask)
        latents, mask, reading = self._read(image, image_mask, True, False)
        return FusionCache((ResamplerCache(self.fusion.init_cache(batch_size, max_length, latents, mask), reading),))

    def _read(
        self, image: KerasTensor, image_mask: KerasTensor | None, return_scores: bool, training: bool | None
    ) -> tuple[KerasTensor, KerasTensor | None, KerasTensor | None]:
        """Latents, their mask, and what they read of the patches, ``float32[B, N, P]``, if asked for."""
        result = self.resampler(image, media_mask=image_mask, return_scores=return_scores, training=training)
        latents, reading = (
            (result.latents, renormalized(ops.mean(result.scores, axis=(1, 2)))) if return_scores else (result, None)
        )
        mask = latents_mask(image_mask, self.num_latents)
        return without_masked(latents, mask), mask, reading

    def call(
        self,
        text: KerasTensor,
        image: KerasTensor | None = None,
        text_mask: KerasTensor | None = None,
        image_mask: KerasTensor | None = None,
        causal: bool = False,
        cache: FusionCache | None = None,
        return_scores: bool = False,
        training: bool | None = None,
    ) -> FusionOutput:
        """Joins the two streams; see the class."""
        text, image, text_mask, image_mask = self.checked(text, image, text_mask, image_mask, causal, cache)
        latents = mask = inner_cache = None
        if cache is None:
            latents, mask, reading = self._read(image, image_mask, return_scores, training)
        else:
            # Keras casts what comes in to the dtype of the computation; what goes out is of the dtype that it was.
            inner_cache, reading = cache.layers[0].fusion, ops.cast(cache.layers[0].reading, "float32")
        output = self.fusion(
            text,
            latents,
            text_mask=text_mask,
            image_mask=mask,
            causal=causal,
            cache=inner_cache,
            return_scores=return_scores,
            training=training,
        )
        return FusionOutput(
            text=output.text,
            image=output.image,
            scores=through_latents(output.scores, reading) if return_scores else None,
            cache=None if output.cache is None else FusionCache((ResamplerCache(output.cache, reading),)),
        )

    def check_causal(self) -> None:
        """As the inner style."""
        with told_by(self.name):
            self.fusion.check_causal()

    def owns_cache(self, cache: FusionCache) -> bool:
        """Whether it is one `ResamplerCache`."""
        return is_made_of(cache, ResamplerCache, 1)

    def cost(self, text_length: int, image_length: int) -> Cost:
        """What a forward pass of one pair costs; see the class for the formula."""
        self.check_lengths(text_length, image_length)
        layer = attention_cost(
            self.num_latents,
            image_length + self.num_latents,
            self.dim,
            context_dim=self.dim,
            num_heads=self.num_heads,
            kernel=self.kernel,
        ) + feed_forward_cost(self.num_latents, self.dim, self.mlp_ratio)
        projection = dense_cost(image_length, self.image_dim, self.dim) if self.image_dim != self.dim else Cost()
        return projection + self.resampler_depth * layer + self.fusion.cost(text_length, self.num_latents)

    def cache_size(self, text_length: int, image_length: int) -> CacheSize:
        """What decoding remembers: what the inner style does of N latents, and ``N·P`` scores of each text."""
        self.check_lengths(text_length, image_length)
        return self.fusion.cache_size(text_length, self.num_latents) + CacheSize(scores=self.num_latents * image_length)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; a fusion that was given is serialised."""
        names = ("num_latents", "resampler_depth", "inner", "inner_options")
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names},
            "fusion": keras.saving.serialize_keras_object(self.fusion) if self._given else None,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> ResamplerFusion:
        """Rebuilds the fusion from `get_config`."""
        config = dict(config)
        if config.get("fusion") is not None:
            config["fusion"] = keras.saving.deserialize_keras_object(config["fusion"], custom_objects=custom_objects)
        return cls(**config)
