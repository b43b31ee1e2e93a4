"""The folder of an export: it appears when it is complete, and never instead of something else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmfusion.errors import ExportError

DESCRIPTION = "mmfusion.json"


def check_output(output: Path, overwrite: bool) -> None:
    """Refuses a folder that holds something, unless it is an export that may be replaced.

    Raises:
        ExportError: If it is not to be replaced.
    """
    if output.exists() and not overwrite:
        raise ExportError("there is something already", where=output, fix="choose another --output, or pass --overwrite")
    if output.exists() and not (output / DESCRIPTION).is_file() and any(output.iterdir()):
        raise ExportError(
            "not replaced: this is no export of mmfusion", where=output, expected=DESCRIPTION, fix="choose another --output"
        )


@contextmanager
def written_at_once(output: Path) -> Iterator[Path]:
    """Gives a path beside `output` to write to, which takes its place in the end; a failure leaves nothing behind.

    Args:
        output: The folder. What is there is replaced.

    Raises:
        ExportError: If it cannot be written.
    """
    partial = output.with_name(f".partial-{output.name}")
    try:
        # What an export that was killed has left.
        shutil.rmtree(partial, ignore_errors=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    except OSError as error:
        raise ExportError("cannot write the export", where=output, found=error.strerror or error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
