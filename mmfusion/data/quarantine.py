"""The list of examples that were skipped, and the share of them at which a run stops."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from mmfusion.errors import DataError


class Quarantine:
    """Counts bad examples, lists each once in a file, and ends the run when they are too many.

    What raises inside `tf.data` comes out of `fit` as a `tf.errors.OpError` with the message buried in it; whoever
    trains re-raises `error`, which is the clear one::

        try:
            trainer.fit(dataset, ...)
        except tf.errors.OpError as failure:
            raise quarantine.error or failure from failure

    Safe to call from many threads.

    Args:
        path: File of JSON lines ``{"name", "reason"}``, appended to; None keeps no file. Names that an earlier part of
            the run listed there are not listed again, though they count again.
        total: Number of examples that `max_share` is a share of.
        max_share: Share of bad examples in [0, 1] past which `record` raises. Default 0.01.

    Example:
        >>> from mmfusion.data import Quarantine
        >>> quarantine = Quarantine(None, total=100, max_share=0.01)
        >>> quarantine.record("captions.jsonl:3", "no such file")
        >>> quarantine.record("captions.jsonl:3", "no such file")
        >>> quarantine.count
        1
        >>> quarantine.record("captions.jsonl:9", "no such file")
        Traceback (most recent call last):
        ...
        mmfusion.errors.DataError: too many bad examples: expected at most 1.00% of 100, found 2, the last \
captions.jsonl:9 (no such file); repair the data or raise data.max_bad_share
    """

    def __init__(self, path: str | Path | None, *, total: int, max_share: float = 0.01) -> None:
        self.path = None if path is None else Path(path)
        self.total = total
        self.max_share = max_share
        self.error: DataError | None = None
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()
        self._listed = self._read_listed()

    @property
    def count(self) -> int:
        """How many examples are bad so far, each counted once."""
        return len(self._reasons)

    @property
    def reasons(self) -> dict[str, str]:
        """Reasons by name, in the order of discovery."""
        with self._lock:
            return dict(self._reasons)

    def record(self, name: str, reason: str) -> None:
        """Notes a bad example.

        Args:
            name: File and row.
            reason: What is wrong.

        Raises:
            DataError: If more than `max_share` of `total` are bad now; `error` holds the same.
        """
        with self._lock:
            if name not in self._reasons:
                self._reasons[name] = reason
                self._append(name, reason)
            if self.count > self.max_share * self.total:
                if self.error is None:
                    self.error = DataError(
                        "too many bad examples",
                        where=self.path,
                        expected=f"at most {self.max_share:.2%} of {self.total:,}",
                        found=f"{self.count}, the last {name} ({reason})",
                        fix="repair the data or raise data.max_bad_share",
                    )
                raise self.error

    def fail(self, error: DataError) -> DataError:
        """Keeps an error that ends the run, so that it is found outside of `tf.data`; returns it."""
        with self._lock:
            self.error = self.error or error
            return self.error

    def _append(self, name: str, reason: str) -> None:
        if self.path is None or (name, reason) in self._listed:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, "reason": reason}, ensure_ascii=False) + "\n")
        except OSError as error:
            self.error = DataError("cannot write the quarantine", where=self.path, found=error.strerror)
            raise self.error from error

    def _read_listed(self) -> set[tuple[str, str]]:
        if self.path is None or not self.path.is_file():
            return set()
        listed = set()
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                listed.add((row["name"], row["reason"]))
            except (ValueError, KeyError, TypeError):
                continue  # A line that a killed run left half written.
        return listed
