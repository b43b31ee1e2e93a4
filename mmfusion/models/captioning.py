"""How a model writes: token by token, with a cache, in graph."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.decoding import (
    BeamOutput,
    DecodeOutput,
    TokenRules,
    beam_search,
    compiled,
    contrastive_search,
    greedy,
    sample,
    stream,
)
from mmfusion.encoders import TextCache
from mmfusion.errors import ConfigError
from mmfusion.fusion import CacheSize, FusionCache
from mmfusion.layers.cache import shared_by_texts
from mmfusion.models.fusing import fusion_of, num_leading_tokens

if TYPE_CHECKING:
    from mmfusion.models.image_text_model import ImageTextModel

METHODS: dict[str, Callable[..., Any]] = {
    "greedy": greedy,
    "beam": beam_search,
    "sample": sample,
    "contrastive": contrastive_search,
}
"""Ways to write, by the name that `write_captions` knows."""
OF_EACH_EXAMPLE = ("seeds", "prefix_ids")
"""Options that are arrays with a row for each image: inputs of a graph, not constants of it, as all that are tensors."""
_GIVEN = {"batch_size", "start_id", "end_id", "pad_id", "max_tokens", "rules", "shared", "hidden"}


class CaptionState(NamedTuple):
    """What decoding carries from token to token.

    Attributes:
        text: Cache of the text encoder.
        fusion: Cache of the fusion, with all that it needs of the image.
        hidden: ``float[N, D]``, what the captioning head made of the newest token; None where nobody asks for it.
    """

    text: TextCache
    fusion: FusionCache
    hidden: KerasTensor | None = None


def write_captions(
    model: ImageTextModel,
    patches: KerasTensor,
    patch_mask: KerasTensor | None = None,
    *,
    method: str | None = None,
    max_tokens: int | None = None,
    **options: Any,
) -> DecodeOutput | BeamOutput:
    """Writes captions of each image.

    Args:
        model: A model with a captioning head.
        patches: ``float[B, P, Di]``, as its fusion reads them.
        patch_mask: ``bool[B, P]``, ``True`` = real patch. Default: all real.
        method: ``"greedy"``, ``"beam"``, ``"sample"`` or ``"contrastive"``. Default: ``"beam"`` where `beam_size` is more than 1,
            else ``"greedy"``.
        max_tokens: Most tokens to write, the end token included. Default: what the text encoder holds.
        **options: Those of the method, see `mmfusion.decoding.beam_search`, `sample` and `contrastive_search`, and those of
            `mmfusion.decoding.TokenRules`, such as ``min_tokens``. Some may be scalar tensors. The special tokens of the head are
            never written.

    Returns:
        `DecodeOutput`, or with ``"beam"`` and ``"sample"`` `BeamOutput`, several captions of each image, best first.

    Raises:
        ConfigError: If there is no such method or option, or the text encoder does not hold so many tokens.
    """
    method, rules, rest = checked_options(model, method, options)
    max_tokens = checked_length(model, max_tokens)
    batch_size = ops.shape(patches)[0]
    state = first_state(model, patches, patch_mask, max_tokens, with_hidden=method == "contrastive")
    if method == "contrastive":
        rest["hidden"] = lambda state: state.hidden
    return METHODS[method](
        model.caption_step,
        state,
        shared=shared_by_texts(state),
        batch_size=batch_size,
        max_tokens=max_tokens,
        rules=rules,
        **special_tokens(model),
        **rest,
    )


def stream_captions(
    model: ImageTextModel,
    images: KerasTensor,
    image_mask: KerasTensor | None = None,
    *,
    max_tokens: int | None = None,
    **options: Any,
) -> Iterator[KerasTensor]:
    """Yields the tokens of greedy captions as they are written.

    Args:
        model: A model with a captioning head.
        images: ``float[B, H, W, 3]``.
        image_mask: Of clips, ``bool[B, F]``, ``True`` = real picture. Default: all real.
        max_tokens: Most tokens to write, the end token included. Default: what the text encoder holds.
        **options: Those of `mmfusion.decoding.TokenRules`.

    Yields:
        ``int32[B]``, the padding for a caption that has ended.
    """
    from mmfusion.models.fusing import image_read

    _, rules, _ = checked_options(model, "greedy", options)
    max_tokens = checked_length(model, max_tokens)

    def begin(images: KerasTensor, image_mask: KerasTensor | None) -> CaptionState:
        patches, patch_mask = model.encode_patches(images, image_mask, training=False)
        return first_state(model, *image_read(model, patches, patch_mask), max_tokens)

    return stream(
        model.caption_step,
        compiled(begin, model.variables)(images, image_mask),
        batch_size=ops.shape(images)[0],
        max_tokens=max_tokens,
        rules=rules,
        compile_step=lambda function: compiled(function, model.variables),
        **special_tokens(model),
    )


def first_state(
    model: ImageTextModel,
    patches: KerasTensor,
    patch_mask: KerasTensor | None,
    max_tokens: int,
    *,
    with_hidden: bool = False,
) -> CaptionState:
    """The state before the first token: room for the text, and all that depends on the image alone, computed once.

    Args:
        model: A model with a captioning head.
        patches: ``float[B, P, Di]``, as its fusion reads them.
        patch_mask: ``bool[B, P]``, ``True`` = real patch, or None.
        max_tokens: Room in tokens.
        with_hidden: Whether the state holds the newest token's vector too. Default False.
    """
    batch_size, text = ops.shape(patches)[0], model.text_encoder
    return CaptionState(
        text.init_cache(batch_size, max_tokens),
        fusion_of(model).init_cache(batch_size, max_tokens, patches, image_mask=patch_mask),
        ops.zeros((batch_size, text.dim), text.compute_dtype) if with_hidden else None,
    )


def state_size(model: ImageTextModel, max_tokens: int, image_length: int | None = None) -> CacheSize:
    """What `first_state` holds, for one image and each text about it; `CacheSize.bytes` says it for beams and a dtype.

    Args:
        model: A model with a captioning head.
        max_tokens: Room in tokens.
        image_length: Image tokens that the fusion reads. Default: those of one picture, without a source
            sentence.

    Example:
        >>> from mmfusion.models import ImageTextModel
        >>> from mmfusion.models.captioning import state_size
        >>> model = ImageTextModel.from_preset("coca", vocabulary_size=100, image_size=32, size="tiny")
        >>> state_size(model, 20).bytes(images=4, texts=3) > state_size(model, 20).bytes(images=4)
        True
    """
    if image_length is None:
        pooling, encoder = model.image_pooling, model.image_encoder
        patches = num_leading_tokens(encoder) + math.prod(encoder.grid)
        image_length = patches if pooling is None else pooling.num_queries - model.contrastive_queries
    return model.text_encoder.cache_size(max_tokens) + fusion_of(model).cache_size(max_tokens, image_length)


def special_tokens(model: ImageTextModel) -> dict[str, int]:
    """Start, end and padding as a model's head knows them."""
    head = model.head("captioning")
    return {"start_id": head.start_id, "end_id": head.end_id, "pad_id": head.pad_id}


def checked_length(model: ImageTextModel, max_tokens: int | None) -> int:
    """How many tokens to write at most.

    Raises:
        ConfigError: If the text encoder does not hold so many.
    """
    longest = model.text_encoder.max_length - 1
    if max_tokens is not None and not 1 <= max_tokens <= longest:
        raise ConfigError(
            "impossible length of a caption",
            where="max_tokens",
            expected=f"1 to {longest} (the text encoder holds {longest + 1} tokens with the start token)",
            found=max_tokens,
        )
    return longest if max_tokens is None else max_tokens


def checked_options(model: ImageTextModel, method: str | None, options: dict[str, Any]) -> tuple[str, TokenRules, dict[str, Any]]:
    """The method, the rules, and what is left for the method.

    Raises:
        ConfigError: If there is no such method or option.
    """
    head = model.head("captioning")
    options = dict(options)
    if method is None:
        method = "beam" if options.get("beam_size", 1) > 1 else "greedy"
        if method == "greedy":
            options.pop("beam_size", None)
    if method not in METHODS:
        raise ConfigError("unknown method of decoding", where="method", expected=" or ".join(METHODS), found=repr(method))
    parameters = inspect.signature(METHODS[method]).parameters
    own = [name for name in parameters if name not in {"step", "state", *_GIVEN}]
    unknown = [name for name in options if name not in {*own, *TokenRules._fields}]
    if unknown:
        raise ConfigError(
            f"an option that {method} decoding does not have",
            where="caption",
            expected=", ".join([*own, *TokenRules._fields]),
            found=", ".join(unknown),
        )
    needed = [name for name in own if parameters[name].default is inspect.Parameter.empty and name not in options]
    if needed:
        raise ConfigError(f"{method} decoding needs an option that is not there", where="caption", expected=", ".join(needed))
    rules = TokenRules(**{name: options.pop(name) for name in TokenRules._fields if name in options})
    return method, rules._replace(forbidden_ids=(head.start_id, *head.forbidden_ids, *rules.forbidden_ids)), options


def best_caption(output: DecodeOutput | BeamOutput, length_penalty: float = 1.0) -> tuple[KerasTensor, KerasTensor]:
    """The best caption of each image, ``int32[B, L]``, and its mean log-probability a token, ``float32[B]``.

    Args:
        output: What decoding gave.
        length_penalty: Of beam search, whose own scores depend on it. Default 1.
    """
    if len(output.token_ids.shape) == 2:
        return output.token_ids, output.scores
    if not ops.is_tensor(length_penalty) and length_penalty == 1.0:
        return output.token_ids[:, 0], output.scores[:, 0]
    return output.token_ids[:, 0], mean_scores(output, length_penalty)[:, 0]


def mean_scores(output: DecodeOutput | BeamOutput, length_penalty: float | KerasTensor) -> KerasTensor:
    """The mean log-probability a token of each text of beam search, ``float32[B, K]``.

    Args:
        output: What beam search gave.
        length_penalty: As it was told it.
    """
    return output.scores * ops.cast(ops.maximum(output.lengths, 1), "float32") ** (length_penalty - 1.0)


class Captioner:
    """Captions outside of a graph: one graph for each size of batch and each set of options, and few sizes of batch.

    Args:
        write: ``(images, image_mask, **options)`` to what decoding gives, of a model.
        variables: The model's.
    """

    def __init__(self, write: Callable[..., Any], variables: list[keras.Variable]) -> None:
        self._write = write
        self._variables = variables
        self._graphs: dict[Any, Callable[..., Any]] = {}

    def __call__(self, images: KerasTensor, image_mask: KerasTensor | None, options: dict[str, Any]) -> Any:
        """As the function, with a batch filled up to a power of two, and cut again."""
        rows = keras.tree.flatten(images)[0].shape[0]
        arrays = {name: value for name, value in options.items() if name in OF_EACH_EXAMPLE or ops.is_tensor(value)}
        fixed = {name: value for name, value in options.items() if name not in arrays}
        key = (tuple(arrays), _hashable(fixed))
        if key not in self._graphs:
            names = tuple(arrays)
            self._graphs[key] = compiled(
                lambda images, mask, *values: self._write(images, mask, **fixed, **dict(zip(names, values, strict=True))),
                self._variables,
            )
        size = power_of_two(rows)
        filled = [filled_up(x, rows, size) for x in (images, image_mask, *arrays.values())]
        output = self._graphs[key](*filled)
        return output if size == rows else type(output)(*(part[:rows] for part in output))


def power_of_two(number: int) -> int:
    """The first power of two that is not less: sizes of graphs, of which there should be few."""
    return 1 << max(number - 1, 0).bit_length()


def filled_up(values: Any, rows: int, size: int) -> Any:
    """A tensor of a batch of `rows` with its first row again behind it, `size` in all; what is None or of no batch as it is."""
    if values is None:
        return None
    if isinstance(values, dict):
        return {name: filled_up(value, rows, size) for name, value in values.items()}
    values = ops.convert_to_tensor(values)
    if size == rows or not len(values.shape) or values.shape[0] != rows:
        return values
    return ops.concatenate([values, ops.repeat(values[:1], size - rows, axis=0)], axis=0)


def _hashable(options: Any) -> Any:
    if isinstance(options, dict):
        return tuple(sorted((name, _hashable(value)) for name, value in options.items()))
    return tuple(map(_hashable, options)) if isinstance(options, list | tuple) else options
