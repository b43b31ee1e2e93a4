"""Which pairs of a local row and a global column are positives, and which count at all."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import KerasTensor, ops

from mmfusion.errors import ConfigError

DUPLICATES = ("positive", "ignore")


class PairMasks(NamedTuple):
    """What each pair of a contrastive loss is.

    Attributes:
        positive: ``bool[b, B]``, the pairs to be drawn together.
        kept: ``bool[b, B]``, the pairs that take part at all.
    """

    positive: KerasTensor
    kept: KerasTensor


def pair_masks(
    *,
    rows: KerasTensor | int,
    columns: KerasTensor | int,
    offset: Any,
    image_id: Any,
    all_image_id: Any,
    duplicates: str,
) -> PairMasks:
    """Marks the pairs of ``b`` local rows, which are columns ``offset`` to ``offset + b``, and ``B`` global columns.

    Args:
        rows: b.
        columns: B.
        offset: ``int[]``.
        image_id: ``int[b]``, or None where every pair has an image of its own.
        all_image_id: ``int[B]``, or None likewise.
        duplicates: ``"positive"`` or ``"ignore"``; what other pairs of the same image are.

    Returns:
        The masks.
    """
    own_column = ops.arange(rows, dtype="int32") + ops.cast(offset, "int32")
    own = own_column[:, None] == ops.arange(columns, dtype="int32")[None, :]
    if image_id is None:
        return PairMasks(own, ops.ones_like(own))
    image_id = ops.convert_to_tensor(image_id)
    all_image_id = ops.cast(all_image_id, image_id.dtype)
    same_image = image_id[:, None] == all_image_id[None, :]
    if duplicates == "positive":
        return PairMasks(same_image, ops.ones_like(own))
    return PairMasks(own, ops.logical_or(own, ops.logical_not(same_image)))


def check_arguments(
    *, image: Any, text: Any, image_id: Any, all_image_id: Any, gathered: dict[str, Any], duplicates: str
) -> None:
    """Raises `ConfigError` for arguments that do not go together.

    Args:
        image: ``float[b, E]``.
        text: ``float[b, E]``.
        image_id: ``int[b]`` or None.
        all_image_id: ``int[B]`` or None.
        gathered: The gathered features by their argument's name, None where not given.
        duplicates: The choice to check.
    """
    if duplicates not in DUPLICATES:
        raise ConfigError(
            "unknown treatment of duplicates",
            where="duplicates",
            expected=" or ".join(map(repr, DUPLICATES)),
            found=repr(duplicates),
        )
    shapes = tuple(image.shape), tuple(text.shape)
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or _differ(shapes[0], shapes[1]):
        raise ConfigError(
            "image and text features do not pair up",
            where="contrastive loss",
            expected="two float[b, E]",
            found=f"{shapes[0]} and {shapes[1]}",
        )
    given = [name for name, value in gathered.items() if value is not None]
    if given and len(given) != len(gathered):
        raise ConfigError(
            "gathered features must be given together",
            where="contrastive loss",
            expected=", ".join(gathered),
            found=", ".join(given),
        )
    if (given or image_id is None) and (image_id is None) != (all_image_id is None):
        raise ConfigError(
            "with a gathered batch, image ids are needed of both the local rows and all rows",
            where="contrastive loss",
            expected="image_id and all_image_id, or neither",
            found="image_id only" if all_image_id is None else "all_image_id only",
        )


def _differ(first: tuple[int | None, ...], second: tuple[int | None, ...]) -> bool:
    return any(a is not None and b is not None and a != b for a, b in zip(first, second, strict=True))
