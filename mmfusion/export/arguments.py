"""What people pass to a `mmfusion.export.Predictor`, told apart before anything reads it letter by letter."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from mmfusion.errors import DataError


def listed(values: Any, what: str, example: str) -> list[Any]:
    """Several pictures or sentences as a list.

    Args:
        values: What was passed: any iterable but a single string, path or file, which is made of letters and bytes.
        what: The argument's name.
        example: How it should look.

    Raises:
        DataError: If it is one thing, or nothing that can be gone through.

    Example:
        >>> listed("photo.jpg", "images", "['photo.jpg']")
        Traceback (most recent call last):
        mmfusion.errors.DataError: a list is needed [images]: expected one such as ['photo.jpg'], found 'photo.jpg'
    """
    if isinstance(values, str | bytes | os.PathLike) or not isinstance(values, Iterable):
        raise DataError("a list is needed", where=what, expected=f"one such as {example}", found=shown(values))
    return list(values)


def texts_listed(values: Any) -> list[str]:
    """Several sentences as a list, each of them text.

    Raises:
        DataError: If it is no list, or something in it is no text.
    """
    return [checked_text(text, f"texts[{number}]") for number, text in enumerate(listed(values, "texts", "['a dog on sand']"))]


def checked_text(value: Any, what: str = "text") -> str:
    """One sentence.

    Args:
        value: What was passed.
        what: The argument's name. Default ``"text"``.

    Raises:
        DataError: If it is no text.

    Example:
        >>> checked_text(["a dog"])
        Traceback (most recent call last):
        mmfusion.errors.DataError: one text is needed [text]: expected a string, found ['a dog']
    """
    if not isinstance(value, str):
        raise DataError("one text is needed", where=what, expected="a string", found=shown(value))
    return value


def shown(value: Any) -> str:
    """A value for a message: short, and of what is not text or a short list its type alone."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    text = repr(value)
    return text if isinstance(value, str | os.PathLike | list | tuple | int | None) and len(text) < 80 else type(value).__name__
