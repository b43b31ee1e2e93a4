"""A model of ours filled with the tensors of a checkpoint, all of them or none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mmfusion.convert.state import Array, State, read_state
from mmfusion.convert.tensors import Table, Tensors, flattened
from mmfusion.errors import CheckpointError

_NAMED = 6


def fill(
    model: keras.Model,
    table: Table,
    state: State | str | Path,
    *,
    family: str,
    kept: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> None:
    """Gives each weight of a model its value, strictly: every weight has a source, every tensor a use, every shape fits.

    Args:
        model: The model, built.
        table: What each weight is made of, see `mmfusion.convert.Tensors`.
        state: The checkpoint, see `read_state`.
        family: What it is of, for the error.
        kept: Weights that the checkpoint has nothing for and that stay as they are, by their dotted paths.
        ignored: Regular expressions of tensors that are no weights, such as counters.

    Raises:
        CheckpointError: If something is missing, left over or of another shape, with the tensors and shapes; nothing is changed.

    Example:
        >>> import keras, numpy as np
        >>> from mmfusion.convert import fill
        >>> from mmfusion.convert.tensors import dense
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> fill(model, {"layers.0": dense("fc")}, {"fc.weight": np.ones((2, 3)), "fc.bias": np.ones(2)}, family="one layer")
        >>> model(np.ones((1, 3))).numpy().tolist()
        [[4.0, 4.0]]
        >>> fill(model, {"layers.0": dense("fc")}, {"fc.weight": np.ones((3, 3)), "bias": np.ones(2)}, family="a map")
        Traceback (most recent call last):
        ...
        mmfusion.errors.CheckpointError: the checkpoint does not fit the model [a map]: expected fc.bias for layers.0.bias [2], \
layers.0.kernel [3, 2], found no fc.bias, left over bias [2], fc.weight [3, 3]
    """
    tensors, wanted = read_state(state), flattened(table)
    variables = {path: weight_at(model, path) for path in wanted}
    _check_whole(model, variables.values(), [weight_at(model, path) for path in kept], family)
    expected, found, values = [], [], {}
    missing = sorted({name for made in wanted.values() for name in made.names} - set(tensors))
    for name in missing:
        path = next(path for path, made in wanted.items() if name in made.names)
        expected.append(f"{name} for {path} {list(variables[path].shape)}")
        found.append(f"no {name}")
    used = {name for made in wanted.values() for name in made.names}
    for name in sorted(set(tensors) - used):
        if not any(re.search(pattern, name) for pattern in ignored):
            found.append(f"left over {name} {list(tensors[name].shape)}")
    for path, made in wanted.items():
        if not set(made.names) & set(missing):
            value, needs = _made(made, tensors)
            if value is None or value.shape != tuple(variables[path].shape):
                expected.append(f"{path} {list(variables[path].shape)}" + (f" of {needs}" if needs else ""))
                found.append(" and ".join(f"{name} {list(tensors[name].shape)}" for name in made.names))
            values[path] = value
    if found:
        raise CheckpointError(
            "the checkpoint does not fit the model",
            where=family,
            expected=_listed(expected) or "nothing more than the model has",
            found=_listed(found),
        )
    for path, variable in variables.items():
        variable.assign(values[path])


def weight_at(model: Any, path: str) -> Any:
    """What stands at a dotted path: attributes, indices of lists, keys of dictionaries.

    Raises:
        CheckpointError: If the model has no such part.
    """
    part = model
    for name in path.split("."):
        try:
            part = part[int(name)] if name.isdigit() else part[name] if isinstance(part, dict) else getattr(part, name)
        except (AttributeError, IndexError, KeyError, TypeError):
            part = None
        if part is None:
            raise CheckpointError("the model has no such part", where=path, found=f"no {name}")
    return part


def _check_whole(model: keras.Model, filled: Iterable[Any], kept: Iterable[Any], family: str) -> None:
    known = {id(weight) for weight in (*filled, *kept)}
    # Seeds of dropout are the model's own.
    left = [weight.path for weight in model.weights if id(weight) not in known and "seed_generator" not in weight.path]
    if left:
        raise CheckpointError("the table of names leaves weights without a source", where=family, found=_listed(left))


def _made(made: Tensors, tensors: dict[str, Array]) -> tuple[Array | None, str | None]:
    try:
        return np.asarray(made.form(*(np.asarray(tensors[name], np.float32) for name in made.names))), None
    except (ValueError, IndexError, TypeError) as error:
        return None, str(error)


def _listed(parts: Sequence[str]) -> str:
    more = len(parts) - _NAMED
    return ", ".join(parts[:_NAMED]) + (f" and {more} more" if more > 0 else "")
