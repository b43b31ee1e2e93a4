"""Which split a name means."""

from __future__ import annotations

import re

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
_SPLITS["test"] = "test"


def split_of(name: str) -> str | None:
    """The split that the name of a folder begins with, as its first word of letters.

    Args:
        name: Such as ``"validation"`` or ``"train2017"``.

    Returns:
        ``"train"``, ``"val"`` or ``"test"``; None if it names none.

    Example:
        >>> split_of("validation"), split_of("train2017"), split_of("trains"), split_of("my train")
        ('val', 'train', None, None)
    """
    match = re.match(r"[A-Za-z]+", name)
    return split_named(match.group(0)) if match else None


def split_of_file(name: str) -> str | None:
    """The split that the name of a file says: its first word that is a split's name.

    Args:
        name: Such as ``"cc3m-validation-0003.tar"``.

    Returns:
        ``"train"``, ``"val"`` or ``"test"``; None if it names none.

    Example:
        >>> split_of_file("validation-00000-of-00004.tfrecord"), split_of_file("cc3m.train.0.tar"), split_of_file("0.tar")
        ('val', 'train', None)
    """
    return next((split for word in re.findall(r"[A-Za-z]+", name) if (split := split_named(word))), None)


def split_named(name: str) -> str | None:
    """The split that a word means: ``"train"``, ``"val"`` or ``"test"``; None if it means none.

    Example:
        >>> split_named("Validation"), split_named("dev"), split_named("restval")
        ('val', 'val', None)
    """
    return _SPLITS.get(name.lower())
