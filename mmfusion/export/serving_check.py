"""Whether a release of TensorFlow Serving has what an export needs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmfusion.errors import ConfigError, ExportError
from mmfusion.export.folder import DESCRIPTION
from mmfusion.export.operators import operators_of
from mmfusion.export.serving_releases import VERIFIED, releases_of


class ServingCheck(NamedTuple):
    """What a release of TensorFlow Serving has of what an export needs beyond TensorFlow's own operators.

    Attributes:
        release: The release, such as ``"2.14"``.
        held: Operators that it has.
        lacking: Operators that it has not.
        unknown: Operators of which that could not be verified.
        tensorflow: The export's TensorFlow.
        older: Whether the release is of an older TensorFlow than the export, so that it may lack operators of TensorFlow's own.
        source: How it is known; None where nothing is.
    """

    release: str
    held: tuple[str, ...]
    lacking: tuple[str, ...]
    unknown: tuple[str, ...]
    tensorflow: str
    older: bool
    source: str | None


def check_serving(export: str | Path, release: str) -> ServingCheck:
    """Compares an export's graph with what is known of a release of TensorFlow Serving.

    Args:
        export: The export's folder.
        release: The release, such as ``"2.14"`` or ``"2.14.1"``.

    Returns:
        The `ServingCheck`.

    Raises:
        ConfigError: If that is no release.
        ExportError: If the folder is no SavedModel of mmfusion.
    """
    number = _number(release)
    export = Path(export)
    try:
        tensorflow = json.loads((export / DESCRIPTION).read_text(encoding="utf-8"))["tensorflow"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError("not an export of mmfusion", where=export, expected=DESCRIPTION, found=str(error)[:200]) from error
    needed, known = operators_of(export), releases_of(number)
    held = tuple(name for name in needed if known is not None and name in known.holds)
    lacking = tuple(name for name in needed if known is not None and name in known.lacks)
    unknown = tuple(name for name in needed if name not in {*held, *lacking})
    older = number < _number(tensorflow)
    return ServingCheck(release, held, lacking, unknown, tensorflow, older, None if known is None else known.source)


def serving_lines(needed: Sequence[str], tensorflow: str) -> list[str]:
    """What a model card says of TensorFlow Serving, in Markdown.

    Args:
        needed: Operators that the export needs beyond TensorFlow's own.
        tensorflow: The export's TensorFlow.
    """
    told = ", ".join(f"`{name}`" for name in needed)
    lines = [
        "## TensorFlow Serving",
        "",
        "Warm-up requests are in `assets.extra`: Serving replays them before it says that it is ready.",
        f"The graph is TensorFlow {tensorflow}'s: an older Serving may lack operators of it. "
        + (
            f"Beyond TensorFlow's own it needs {told} of tensorflow-text."
            if needed
            else "It needs no operators but TensorFlow's."
        ),
    ]
    if not needed:
        return lines
    lines += ["", "| TensorFlow Serving | has | lacks | not verified |", "|---|---|---|---|"]
    for known in VERIFIED:
        parts = (
            [name for name in needed if name in known.holds],
            [name for name in needed if name in known.lacks],
            [name for name in needed if name not in known.holds | known.lacks],
        )
        lines.append(f"| {known.name} | " + " | ".join(", ".join(part) or "-" for part in parts) + " |")
    return [*lines, f"| all others | - | - | {', '.join(needed)} |", "", "`mmfusion check-serving` says how that is known."]


def _number(release: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)(?:[.-]|$)", release)
    if not found:
        raise ConfigError("no release of TensorFlow Serving", where="release", expected="such as 2.14", found=repr(release))
    return int(found[1]), int(found[2])
