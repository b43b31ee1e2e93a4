"""The JSON of TensorFlow Serving's REST interface: requests into rows, answers into JSON."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from mmfusion.errors import DataError
from mmfusion.serving.limits import Limits
from mmfusion.serving.signature import Signature

Row = dict[str, Any]
"""One example's inputs by name: bytes, a list of bytes, an array ``int32[N]`` or ``bool[N]``, or a number."""

_LONGEST = 4096
"""Of an input ``[B, N]``: more tokens or pictures than any model takes."""


class Predict(NamedTuple):
    """A request as it was sent.

    Attributes:
        signature_name: The signature asked for, or None.
        by_rows: Whether it is in row format (``instances``), not in column format (``inputs``).
        values: What stands there.
    """

    signature_name: str | None
    by_rows: bool
    values: Any


def read_json(body: bytes) -> dict[str, Any]:
    """A body's JSON object.

    Raises:
        DataError: If it is not UTF-8, not JSON, or no object.

    Example:
        >>> read_json(b'["a"]')
        Traceback (most recent call last):
        mmfusion.errors.DataError: not a request [body]: expected a JSON object, found an array
    """
    try:
        content = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            "the body is not UTF-8",
            where="body",
            expected="JSON in UTF-8",
            found=f"byte {body[error.start]:#04x} at {error.start}",
        ) from None
    except RecursionError:
        raise DataError("the body is nested too deeply", where="body", expected="a JSON object") from None
    except ValueError as error:
        found = "nothing" if not body.strip() else str(error)[:200]
        raise DataError("the body is not JSON", where="body", expected="a JSON object", found=found) from None
    if not isinstance(content, dict):
        raise DataError("not a request", where="body", expected="a JSON object", found=kind(content))
    return content


def read_predict(body: bytes) -> Predict:
    """Takes a predict request apart, as far as that goes without knowing the signature.

    Args:
        body: The request's body: ``{"signature_name": …, "instances": […]}`` or ``{"signature_name": …, "inputs": …}``.

    Raises:
        DataError: If it is no such request.

    Example:
        >>> read_predict(b'{"instances": ["a dog"]}')
        Predict(signature_name=None, by_rows=True, values=['a dog'])

    Source: https://www.tensorflow.org/tfx/serving/api_rest, "Predict API".
    """
    content = read_json(body)
    name = content.get("signature_name")
    if name is not None and not isinstance(name, str):
        raise DataError("not a signature's name", where="signature_name", expected="a string", found=kind(name))
    given = [key for key in ("instances", "inputs") if key in content]
    if len(given) != 1:
        found = "both" if given else ", ".join(sorted(content)[:8]) or "an empty object"
        raise DataError("not a predict request", where="body", expected='one of "instances" and "inputs"', found=found[:200])
    by_rows = given == ["instances"]
    if by_rows and not isinstance(content["instances"], list):
        raise DataError("not a list of rows", where="instances", expected="an array", found=kind(content["instances"]))
    return Predict(name or None, by_rows, content[given[0]])


def read_rows(request: Predict, signature: Signature, limits: Limits) -> list[Row]:
    """A request's rows, each value of the type that the signature wants.

    Args:
        request: The request.
        signature: The signature that it asks for.
        limits: How many rows there may be.

    Raises:
        DataError: If a key is missing or unknown, or a value is of another type, shape or size.
    """
    if request.by_rows:
        return _rows_of_instances(request.values, signature, limits)
    return _rows_of_inputs(request.values, signature, limits)


def check_count(count: int, where: str, limits: Limits) -> None:
    """Refuses no rows and too many.

    Raises:
        DataError: If so.
    """
    if not 1 <= count <= limits.max_instances:
        raise DataError(
            "nothing was asked" if not count else "too many rows",
            where=where,
            expected=f"1 to {limits.max_instances}",
            found=count,
        )


def _rows_of_instances(instances: list[Any], signature: Signature, limits: Limits) -> list[Row]:
    check_count(len(instances), "instances", limits)
    if signature.options:
        raise DataError(
            f"{signature.name} takes numbers for the whole request", where="instances", expected='"inputs", by column',
            found='"instances"', fix=f"send {' and '.join(signature.options)} once, and an array of each other input",
        )  # fmt: skip
    rows: list[Row] = []
    for number, instance in enumerate(instances):
        where = f"instances[{number}]"
        if not isinstance(instance, dict) or _is_base64(instance):
            # A signature of one input is asked without naming it.
            if len(signature.inputs) > 1:
                raise DataError("no name before a value", where=where, expected=_keys(signature), found=kind(instance))
            instance = {next(iter(signature.inputs)): instance}
        _check_keys(instance, signature, where)
        rows.append({key: _row_value(instance[key], spec, f"{where}: {key}") for key, spec in signature.inputs.items()})
    for key in signature.inputs:
        for number, row in enumerate(rows):
            if isinstance(row[key], np.ndarray | list) and len(row[key]) != len(rows[0][key]):
                raise DataError(
                    "rows of different lengths",
                    where=f"instances[{number}]: {key}",
                    expected=len(rows[0][key]),
                    found=len(row[key]),
                )
    return rows


def _rows_of_inputs(inputs: Any, signature: Signature, limits: Limits) -> list[Row]:
    if not isinstance(inputs, dict) or _is_base64(inputs):
        if len(signature.inputs) > 1:
            raise DataError("no name before a value", where="inputs", expected=_keys(signature), found=kind(inputs))
        inputs = {next(iter(signature.inputs)): inputs}
    _check_keys(inputs, signature, "inputs")
    columns: dict[str, list[Any]] = {}
    options = {key: _scalars([inputs[key]], signature.inputs[key].dtype, f"inputs: {key}")[0] for key in signature.options}
    for key, spec in signature.inputs.items():
        if key in options:
            continue
        column = inputs[key]
        if not isinstance(column, list):
            raise DataError("not a column", where=f"inputs: {key}", expected="an array, a value a row", found=kind(column))
        check_count(len(column), f"inputs: {key}", limits)
        columns[key] = [_row_value(value, spec, f"inputs: {key}[{number}]") for number, value in enumerate(column)]
        for number, value in enumerate(columns[key]):
            if isinstance(value, np.ndarray | list) and len(value) != len(columns[key][0]):
                raise DataError(
                    "rows of different lengths", where=f"inputs: {key}[{number}]", expected=len(columns[key][0]), found=len(value)
                )
    counts = {key: len(column) for key, column in columns.items()}
    if len(set(counts.values())) > 1:
        raise DataError("columns of different lengths", where="inputs", expected="as many rows in each", found=counts)
    return [dict(zip(columns, values, strict=True)) | options for values in zip(*columns.values(), strict=True)]


def _check_keys(given: Mapping[str, Any], signature: Signature, where: str) -> None:
    if set(given) != set(signature.inputs):
        found = ", ".join(sorted(map(str, given))[:8])[:200] or "nothing"
        raise DataError(f"not the inputs of {signature.name}", where=where, expected=_keys(signature), found=found)


def _keys(signature: Signature) -> str:
    return " and ".join(signature.inputs)


def _row_value(value: Any, spec: tf.TensorSpec, where: str) -> Any:
    if spec.shape.rank == 1:
        if spec.dtype != tf.string:
            return _scalars([value], spec.dtype, where)[0]
        return _string(value, where)
    if not isinstance(value, list) or not 1 <= len(value) <= _LONGEST:
        found = f"{len(value)} values" if isinstance(value, list) else kind(value)
        raise DataError("not a list of values", where=where, expected=f"an array of 1 to {_LONGEST}", found=found)
    if spec.dtype == tf.string:
        return [_string(item, f"{where}[{number}]") for number, item in enumerate(value)]
    return _scalars(value, spec.dtype, where)


def _scalars(values: list[Any], dtype: tf.DType, where: str) -> np.ndarray:
    # True is an int to Python, but not to JSON.
    wanted = {tf.bool: (bool,), tf.float32: (int, float)}.get(dtype, (int,))
    low, high = (False, True) if dtype == tf.bool else (wanted[-1](dtype.min), wanted[-1](dtype.max))
    for number, value in enumerate(values):
        # NaN is in no range.
        if type(value) not in wanted or not low <= value <= high:
            found = kind(value) if type(value) not in wanted else "a number beyond 32 bits"
            raise DataError(f"not {dtype.name}", where=f"{where}[{number}]", expected=dtype.name, found=found)
    return np.array(values, dtype.as_numpy_dtype)


def _string(value: Any, where: str) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(
                "not a text", where=where, expected="characters of Unicode", found="half of a surrogate pair"
            ) from None
    if _is_base64(value):
        return read_base64(value["b64"], where)
    raise DataError("neither a text nor bytes", where=where, expected='a string, or {"b64": "…"}', found=kind(value))


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)


def read_base64(text: str, where: str) -> bytes:
    """Bytes from base64, with or without padding and line breaks.

    Args:
        text: The letters.
        where: What to call them in an error.

    Raises:
        DataError: If it is no base64.

    Example:
        >>> read_base64("YSBk b2c", "image")
        b'a dog'
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        compact = "".join(text.split()).rstrip("=")
        try:
            return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
        except (binascii.Error, ValueError) as error:
            raise DataError("invalid base64", where=where, expected="letters of base64", found=str(error)[:120]) from None


def kind(value: Any) -> str:
    """What JSON calls a value, for a message.

    Example:
        >>> kind(None), kind([1]), kind(1.5)
        ('null', 'an array', 'a number')
    """
    if value is None:
        return "null"
    names = ((bool, "true or false"), (str, "a string"), (dict, "an object"), (list, "an array"), (int | float, "a number"))
    return next(name for wanted, name in names if isinstance(value, wanted))


def answer(rows: Sequence[Mapping[str, np.ndarray]], *, by_rows: bool) -> dict[str, Any]:
    """Answers in the format in which was asked.

    Args:
        rows: An answer a row: arrays by output's name.
        by_rows: Whether ``predictions``, a value a row; else ``outputs``, a list a name. Of a signature with one output both are
            without its name.

    Example:
        >>> answer([{"score": np.float32(0.5)}, {"score": np.float32(0.25)}], by_rows=True)
        {'predictions': [0.5, 0.25]}
        >>> answer([{"a": np.array([1, 2]), "b": np.array(b"x", object)}], by_rows=False)
        {'outputs': {'a': [[1, 2]], 'b': ['x']}}
    """
    plain = [{name: json_value(value, name) for name, value in row.items()} for row in rows]
    names = list(rows[0])
    if by_rows:
        return {"predictions": [row[names[0]] for row in plain] if len(names) == 1 else plain}
    columns = {name: [row[name] for row in plain] for name in names}
    return {"outputs": columns[names[0]] if len(names) == 1 else columns}


def json_value(value: Any, name: str = "") -> Any:
    """An array as nested lists; byte strings as text, or as base64 where the output's name ends in ``_bytes``."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    return _texts(value, name.endswith("_bytes"))


def _texts(value: Any, as_bytes: bool) -> Any:
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()} if as_bytes else value.decode("utf-8", "replace")
    if isinstance(value, list) and value and isinstance(value[0], list | bytes):
        return [_texts(item, as_bytes) for item in value]
    return value
