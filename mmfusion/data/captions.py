"""What counts as a caption."""

from __future__ import annotations

from collections.abc import Sequence

MAX_CHARACTERS = 2000
"""Longest caption that is taken: more is a document pasted into the wrong column, not a caption."""


def clean_captions(captions: object) -> tuple[tuple[str, ...], list[str]]:
    r"""Tidies the captions of a row, and says which cannot be used.

    White space is collapsed. A bad caption costs the row that caption only; a row without any left is its reader's to
    drop.

    Args:
        captions: What the row holds: a string, or a list of strings.

    Returns:
        The usable captions and the reasons why others are not.

    Example:
        >>> clean_captions(["  A dog\n runs . ", ""])
        (('A dog runs .',), ['caption 2 is empty'])
    """
    if isinstance(captions, str):
        captions = [captions]
    if not isinstance(captions, Sequence) or isinstance(captions, bytes | bytearray):
        return (), [f"captions: expected a string or a list of strings, found {type(captions).__name__}"]
    if not captions:
        return (), ["no caption"]
    good: list[str] = []
    reasons: list[str] = []
    for number, caption in enumerate(captions, start=1):
        if not isinstance(caption, str):
            reasons.append(f"caption {number}: expected a string, found {type(caption).__name__}")
            continue
        text = " ".join(caption.replace("\0", " ").split())
        if not text:
            reasons.append(f"caption {number} is empty")
        elif len(text) > MAX_CHARACTERS:
            reasons.append(f"caption {number} has {len(text):,} characters, more than {MAX_CHARACTERS:,}")
        elif not _is_unicode(text):
            reasons.append(f"caption {number} is not valid Unicode")
        else:
            good.append(text)
    return tuple(good), reasons


def _is_unicode(text: str) -> bool:
    # JSON can spell half of a surrogate pair, which no UTF-8 string can hold.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
