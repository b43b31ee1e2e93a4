"""Which options of attention go together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.layers.checks import check_rate, check_size
from mmfusion.layers.kernels import FEATURE_MAPS

KERNELS = ("exact", "chunked", "local", "linear")
DEFAULT_WINDOW = 128
# What has no meaning in attention to a context.
POSITION_OPTIONS = ("rotary", "rotary_base", "grid", "num_unrotated_tokens")


def check_options(options: dict[str, Any], where: str) -> None:
    """Refuses options of `mmfusion.layers.Attention` that are impossible alone or together.

    Args:
        options: The constructor's arguments by name.
        where: Name of the layer.

    Raises:
        ConfigError: With the one that is wrong.
    """
    kernel, rotary = options["kernel"], options["rotary"]
    heads, groups = options["num_heads"], options["num_key_value_heads"]
    for name in ("num_heads", "num_key_value_heads", "chunk_size", "head_dim", "output_dim", "window"):
        if options[name] is not None:
            check_size(options[name], name, where)
    for name in ("num_global_tokens", "num_unrotated_tokens"):
        check_size(options[name], name, where, least=0)
    if heads % groups:
        expected = "num_heads a positive multiple of num_key_value_heads"
        raise ConfigError("impossible head counts", where=where, expected=expected, found=f"{heads} and {groups}")
    check_rate(options["dropout"], "dropout", where)
    check_kernel(kernel, options["dropout"], where)
    cap = options["logit_cap"]
    if cap is not None and not (isinstance(cap, Real) and float(cap) > 0):
        raise ConfigError("impossible logit_cap", where=where, expected="more than 0, or None", found=repr(cap))
    if rotary not in (False, True, "2d"):
        raise ConfigError("unknown rotary positions", where=where, expected="False, True or '2d'", found=repr(rotary))
    # (option, its idle value, whether it has a meaning, what it is of)
    meanings = (
        ("window", None, kernel == "local", "kernel='local'"),
        ("num_global_tokens", 0, kernel == "local", "kernel='local'"),
        ("feature_map", None, kernel == "linear", "kernel='linear'"),
        ("logit_cap", None, kernel != "linear", "a kernel with logits, which 'linear' is not"),
        ("rotary", False, kernel != "linear", "a kernel of query and key products, which features of 'linear' are not"),
        ("grid", None, rotary == "2d", "rotary='2d'"),
        ("num_unrotated_tokens", 0, bool(rotary), "rotary positions"),
    )
    for name, idle, meant, owner in meanings:
        if options[name] != idle and not meant:
            raise ConfigError(
                f"{name} has no meaning here", where=where, expected=f"{name}={idle}, or {owner}", found=options[name]
            )


def check_kernel(
    kernel: str,
    dropout: float,
    where: str,
    option: str = "dropout",
    fix: str = "drop out the block's outputs instead, or use kernel='exact'",
) -> None:
    """Refuses a kernel that there is not, and one that keeps no attention weights where some are to be dropped.

    Args:
        kernel: The kernel.
        dropout: Rate at which attention weights are dropped.
        where: Name of the layer.
        option: What the layer calls that rate. Default ``"dropout"``.
        fix: What to do instead of dropping weights.

    Raises:
        ConfigError: With the one that is wrong.
    """
    if kernel not in KERNELS:
        raise ConfigError("unknown kernel", where=where, expected=" or ".join(KERNELS), found=repr(kernel))
    if dropout and kernel != "exact":
        raise ConfigError(
            "attention weights are not kept by this kernel, so they cannot be dropped",
            where=where,
            expected=f"{option}=0",
            found=f"{option}={dropout}, kernel={kernel!r}",
            fix=fix,
        )


def feature_function(feature_map: Any, where: str) -> Callable[[KerasTensor], KerasTensor]:
    """The function of a name, or of what a configuration holds of a function.

    Args:
        feature_map: None, a name of `FEATURE_MAPS`, a function, or its serialised form.
        where: Name of the layer.

    Raises:
        ConfigError: If the name is unknown, or the function has none, so that what is saved with it could not be loaded.
    """
    if isinstance(feature_map, dict):
        feature_map = keras.saving.deserialize_keras_object(feature_map)
    if callable(feature_map):
        if getattr(feature_map, "__name__", "<lambda>") == "<lambda>":
            raise ConfigError(
                "a feature_map without a name cannot be loaded again",
                where=where,
                expected="a function that is registered with Keras, or a name",
                found=repr(feature_map),
                fix="write it with def, under @keras.saving.register_keras_serializable()",
            )
        return feature_map
    name = "elu" if feature_map is None else feature_map
    if name not in FEATURE_MAPS:
        expected = f"{', '.join(FEATURE_MAPS)}, or a function"
        raise ConfigError("unknown feature_map", where=where, expected=expected, found=repr(feature_map))
    return FEATURE_MAPS[name]


def prefix_last(
    last: KerasTensor, prefix_length: int | KerasTensor | None, filled: int | KerasTensor, batch: int | None, where: str
) -> KerasTensor:
    """The last key of each causal query where all see the first `prefix_length` keys too.

    Args:
        last: ``int32[T]``, of causal attention alone.
        prefix_length: A number, ``int[B]``, or None.
        filled: Keys that there are; a prefix ends there at the latest.
        batch: B, or None where it is not known.
        where: Name of the layer.

    Returns:
        ``int32[T]`` without a prefix, else ``int32[B or 1, T]``.

    Raises:
        ConfigError: If `prefix_length` is no number of tokens, or not one for each example.
    """
    if prefix_length is None:
        return last
    prefix = ops.convert_to_tensor(prefix_length)
    dtype = keras.backend.standardize_dtype(prefix.dtype)
    sizes = [x for x in (*prefix.shape, batch) if x not in (None, 1)]
    if "int" not in dtype or len(prefix.shape) > 1 or len(set(sizes)) > 1:
        found = f"{dtype}{list(prefix.shape)}"
        expected = f"a whole number, or int[{'B' if batch is None else batch}]"
        raise ConfigError("prefix_length is no length", where=where, expected=expected, found=found)
    prefix = ops.minimum(ops.reshape(ops.cast(prefix, "int32"), (-1, 1)), filled)
    return ops.maximum(last[None], prefix - 1)


def checked_grid(grid: Any, where: str) -> tuple[int | KerasTensor, int | KerasTensor] | None:
    """Rows and columns of a grid, or None; what is neither is refused with a `ConfigError`."""
    if grid is None:
        return None
    try:
        sizes = tuple(grid)
    except TypeError:
        sizes = ()
    if len(sizes) != 2:
        raise ConfigError("impossible grid", where=where, expected="(rows, columns)", found=repr(grid))
    for name, size in zip(("rows", "columns"), sizes, strict=True):
        if not ops.is_tensor(size):  # of a map whose size the graph's run alone knows
            check_size(size, f"{name} of the grid", where)
    return sizes


def grid_columns(grid: Sequence[int] | None, num_unrotated: int, length: int | None, where: str) -> int:
    """The columns of a grid, if it has room for exactly the tokens that there are.

    Args:
        grid: Rows and columns.
        num_unrotated: Leading tokens outside of the grid.
        length: Tokens, those included, or None where that is not known.
        where: Name of the layer.

    Raises:
        ConfigError: If there is no grid, or it does not fit.
    """
    if grid is None:
        raise ConfigError("rotary='2d' needs a grid", where=where, fix="pass grid=(rows, columns) to the layer or to the call")
    rows, columns = checked_grid(grid, where)  # type: ignore[misc]  # it is one
    if length is not None and rows * columns + num_unrotated != length:
        found = f"{length} tokens, {num_unrotated} of them unrotated"
        raise ConfigError("the grid does not fit the tokens", where=where, expected=f"{rows} x {columns} tokens", found=found)
    return columns
