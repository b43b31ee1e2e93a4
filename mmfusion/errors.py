"""The errors that people see: one line each, with what, where, expected, found and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MMFusionError(ValueError):
    """An error that a person can act on, told in one line.

    Args:
        what: What went wrong, as a short clause.
        where: The file, row, key or layer concerned.
        expected: What would have been right.
        found: What was there instead.
        fix: What to do about it.

    Example:
        >>> from mmfusion.errors import MMFusionError
        >>> str(MMFusionError("unreadable image", where="a.jpg", expected="JPEG", found="text", fix="remove the row"))
        'unreadable image [a.jpg]: expected JPEG, found text; remove the row'
    """

    # Keras appends a page of arguments to what a layer raises, unless it finds that it has done so already.
    _keras_call_info_injected = True

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.expected, self.found, self.fix = what, where, expected, found, fix
        super().__init__(self._line())

    def add_owner(self, owner: str) -> None:
        """Tells what `where` is a part of, for an error on its way out of a part that knows its own name alone.

        Args:
            owner: Name of the whole. Where it stands already, nothing changes.

        Example:
            >>> from mmfusion.errors import MMFusionError
            >>> error = MMFusionError("unknown kernel", where="attention", found="'quick'")
            >>> error.add_owner("fusion")
            >>> error.add_owner("fusion")
            >>> str(error)
            "unknown kernel [fusion: attention]: found 'quick'"
        """
        if self.where is None:
            self.where = owner
        elif str(self.where).split(": ")[0] != owner:
            self.where = f"{owner}: {self.where}"
        self.args = (self._line(),)

    def _line(self) -> str:
        message = self.what if self.where is None else f"{self.what} [{self.where}]"
        parts = (("expected", self.expected), ("found", self.found))
        details = [f"{label} {value}" for label, value in parts if value is not None]
        if details:
            message = f"{message}: {', '.join(details)}"
        if self.fix:
            message = f"{message}; {self.fix}"
        return " ".join(message.split())


@contextmanager
def told_by(owner: str) -> Iterator[None]:
    """While it is open, errors on their way out say whose part they come from; see `MMFusionError.add_owner`."""
    try:
        yield
    except MMFusionError as error:
        error.add_owner(owner)
        raise


class ConfigError(MMFusionError):
    """A recipe, an option or a constructor argument that cannot work."""


class DataError(MMFusionError):
    """An image, a caption, a row or an archive that cannot be used."""


class TextError(MMFusionError):
    """A vocabulary or a text that cannot be used."""


class CheckpointError(MMFusionError):
    """A checkpoint or a run folder that is missing, broken or does not fit."""


class ExportError(MMFusionError):
    """An export that cannot be written, loaded or verified."""
