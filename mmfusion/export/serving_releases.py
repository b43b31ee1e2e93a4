"""Which operators of tensorflow-text TensorFlow Serving's releases hold, as far as it could be verified (November 2026).

A release of Serving is of the TensorFlow of its own number. Which operators of tensorflow-text it holds is said by what
``tensorflow_serving/model_servers/BUILD`` links of it, and by the version that ``tensorflow_serving/workspace.bzl`` pins; which
operators that version has was read from its wheel on PyPI. Releases that are not listed, and operators that are named in neither
set, were not verified: whoever needs them tries.
"""

from __future__ import annotations

from typing import NamedTuple

_NORMALIZING = frozenset({"NormalizeUTF8", "NormalizeUTF8WithOffsetsMap"})
_WORD_PIECES = frozenset({"WordpieceTokenizeWithOffsets"})
_TRIMMING = frozenset({"TFText>RoundRobinTrim"})


class ServingReleases(NamedTuple):
    """Releases of TensorFlow Serving that are alike.

    Attributes:
        first: The first, as (major, minor).
        last: The last.
        text: What they hold of tensorflow-text.
        holds: Operators that they have.
        lacks: Operators that they have not.
        source: How this is known.
    """

    first: tuple[int, int]
    last: tuple[int, int]
    text: str
    holds: frozenset[str]
    lacks: frozenset[str]
    source: str

    @property
    def name(self) -> str:
        """As people write it."""
        first, last = (".".join(map(str, release)) for release in (self.first, self.last))
        return first if first == last else f"{first} to {last}"


VERIFIED = (
    ServingReleases(
        (2, 0),
        (2, 0),
        "five of its parts",
        _WORD_PIECES,
        _NORMALIZING | _TRIMMING,
        "RELEASE.md of 2.0.0, and model_servers/BUILD at commit 142d0ad that it names",
    ),
    ServingReleases(
        (2, 11),
        (2, 11),
        "all of 2.9",
        _NORMALIZING | _WORD_PIECES,
        _TRIMMING,
        "RELEASE.md of 2.11.0-rc0, model_servers/BUILD at commit 4592081 that it names (tensorflow_text:ops_lib), wheel of 2.9.0",
    ),
    ServingReleases(
        (2, 12),
        (2, 18),
        "all of 2.12",
        _NORMALIZING | _WORD_PIECES,
        _TRIMMING,
        "RELEASE.md of 2.12.0 to 2.18.0, workspace.bzl at commit dbe9339 (2.12.0), model_servers/BUILD at commits 4592081 and "
        "008c02c (tensorflow_text:ops_lib), pull request 4057 of February 2025 (2.12.1 still), wheel of 2.12.1",
    ),
)
"""What is known, oldest first. Of the main branch at commit 0185d7f it is known that it pins tensorflow-text 2.20.0."""


def releases_of(release: tuple[int, int]) -> ServingReleases | None:
    """What is known of a release; None where nothing is.

    Args:
        release: As (major, minor).

    Example:
        >>> from mmfusion.export.serving_releases import releases_of
        >>> releases_of((2, 14)).text, releases_of((2, 5))
        ('all of 2.12', None)
    """
    return next((known for known in VERIFIED if known.first <= release <= known.last), None)
