"""Which split a name means."""

from __future__ import annotations

import re

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
_SPLITS["test"] = "test"


def split_of(name: str) -> str | None:
    """The split that the name of a file or folder begins with, as its first word of letters.

    Args:
        name: Such as ``"validation-00000-of-00004.tfrecord"``.

    Returns:
        ``"train"``, ``"val"`` or ``"test"``; None if it names none.

    Example:
        >>> split_of("validation-00000-of-00004.tfrecord"), split_of("train_{000..004}.tar"), split_of("trains")
        ('val', 'train', None)
    """
    match = re.match(r"[A-Za-z]+", name)
    return _SPLITS.get(match.group(0).lower()) if match else None
