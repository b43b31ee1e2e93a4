"""Ctrl-C and SIGTERM end a training after the step that is running, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """Within it, the first SIGINT or SIGTERM sets `requested`; the second one stops at once.

    SIGTERM is what a cluster sends to a job that it takes its machine from. Outside the main thread, where Python allows no
    handlers, nothing is changed.

    Attributes:
        requested: Whether one has come.

    Example:
        >>> import os, signal
        >>> from mmfusion.training.stop_signals import StopSignals
        >>> with StopSignals() as stop:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     print(stop.requested)
        True
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
