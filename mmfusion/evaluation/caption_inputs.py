"""What every caption score asks of its inputs."""

from __future__ import annotations

from collections.abc import Sequence

from mmfusion.errors import DataError

Tokens = Sequence[str]
"""The words of one caption."""


def check_caption_lists(candidates: Sequence[object], references: Sequence[Sequence[object]]) -> None:
    """Checks that there is one candidate and at least one reference for each image.

    Args:
        candidates: One caption an image.
        references: The captions that people wrote of each image.

    Raises:
        DataError: If there is nothing to score, the lists are unequal in length, or an image has no reference.

    Example:
        >>> check_caption_lists(["a dog"], [["a dog", "one dog"]])
    """
    for name, value in (("candidates", candidates), ("references", references)):
        if isinstance(value, str):
            raise DataError(f"{name} are a list with an entry for each image", found=repr(value), fix="put it into a list")
    if len(candidates) != len(references):
        raise DataError(
            "candidates and references differ in number",
            expected="one candidate and one list of references for each image",
            found=f"{len(candidates)} candidates, {len(references)} lists of references",
        )
    if not candidates:
        raise DataError("no captions to score", expected="at least one image", found="none")
    for row, captions in enumerate(references):
        if isinstance(captions, str):
            raise DataError(
                "the references of an image are a list",
                where=f"row {row}",
                expected="a list of captions",
                found=repr(captions),
                fix="put it into a list",
            )
        if not captions:
            raise DataError("an image without references", where=f"row {row}", expected="at least one", found="none")


def check_token_lists(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    """Checks what `check_caption_lists` does, and that captions were split into words.

    Args:
        candidates: The words of one caption an image.
        references: The words of each reference of each image.

    Raises:
        DataError: If a list is missing or unequal, or a caption is a string that nobody split.

    Example:
        >>> check_token_lists([["a", "dog"]], [[["a", "dog"], ["one", "dog"]]])
    """
    check_caption_lists(candidates, references)
    for row, (candidate, captions) in enumerate(zip(candidates, references, strict=True)):
        for caption in (candidate, *captions):
            if isinstance(caption, str):
                raise DataError(
                    "a caption that is not split into words",
                    where=f"row {row}",
                    expected="a list of words",
                    found=repr(caption),
                    fix="use tokenize_captions first",
                )
