"""From a path, folder or pattern to the files that it means."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from mmfusion.errors import DataError


def matching_files(path: str | Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a path.

    Args:
        path: A file, a folder (its files with one of the suffixes), a pattern with ``*``, ``?`` or ``[…]``, or a range
            in braces as WebDataset writes them: ``shard-{0000..0011}.tar``.
        suffixes: What files of a folder end in.

    Returns:
        The files, sorted; those of a range in its order.

    Raises:
        DataError: If there are none, or one of a range is missing.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for number in range(3): folder.joinpath(f"a-{number}.tar").touch()
        >>> [file.name for file in matching_files(folder / "a-{0..1}.tar", (".tar",))]
        ['a-0.tar', 'a-1.tar']
    """
    text = str(path)
    if Path(text).is_dir():
        files = sorted(file for file in Path(text).iterdir() if file.name.endswith(suffixes) and file.is_file())
        expected = f"files that end in {' or '.join(suffixes)}"
    else:
        patterns = _expanded(text)
        names = [name for name in patterns if Path(name).exists()]
        missing = [name for name in patterns if name not in names and not glob.has_magic(name)]
        if names and missing:
            # A file of a range that is not there was forgotten in a copy.
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise DataError("files of the range are missing", where=path, found=f"no {', '.join(missing[:3])}{more}")
        if not names:
            names = sorted(name for pattern in patterns for name in glob.glob(pattern, recursive=True))
        files = [Path(name) for name in names if Path(name).is_file()]
        expected = "a file, a folder or a pattern of files"
    if not files:
        raise DataError("no such data", where=path, expected=expected, found="none")
    return files


def _expanded(text: str) -> list[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if not match:
        return [text]
    first, last = match.groups()
    numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [rest for number in numbers for rest in _expanded(text[: match.start()] + number + text[match.end() :])]
