"""Where the commands print their tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# More than any line of ours: a file and a pipe have no width at which to cut.
_UNBOUNDED = 10_000


def whole_lines() -> Console:
    """Standard output that cuts or folds lines only where a terminal is too narrow for them, not in a file or a pipe.

    Returns:
        A console of ``rich``.

    Example:
        >>> whole_lines().is_terminal or whole_lines().width > 1000
        True
    """
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_UNBOUNDED)
