"""What every command sets before TensorFlow is imported."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import TextIO


def quiet_tensorflow() -> None:
    """Imports TensorFlow without its notes on the screen; what the user set in the environment stays.

    TensorFlow writes some notes (oneDNN, CUDA) whatever ``TF_CPP_MIN_LOG_LEVEL`` says, before its log is set up. They go nowhere,
    unless that variable is ``0`` or ``--debug`` is given.

    Example:
        >>> import os
        >>> quiet_tensorflow()
        >>> os.environ["TF_CPP_MIN_LOG_LEVEL"] in "0123"
        True
    """
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if _loud() or "tensorflow" in sys.modules:
        return
    with native_notes_hidden():
        import tensorflow as tf
    from absl import logging as absl_logging

    tf.get_logger().setLevel(logging.WARNING if level == "1" else logging.ERROR)
    absl_logging.set_verbosity(absl_logging.WARNING if level == "1" else absl_logging.ERROR)
    # AutoGraph warns of each function that it leaves as it is: nothing that a user of the commands could act on.
    tf.autograph.set_verbosity(0)


@contextlib.contextmanager
def native_notes_hidden() -> Iterator[TextIO]:
    """Hides what C and C++ libraries write to the screen: TensorFlow's notes, libjpeg's about broken files.

    They write to the descriptor itself, so replacing ``sys.stderr`` would not do. Meant for short stretches: the last words of a
    crash would be hidden too.

    Yields:
        The standard error that the user sees, for what must show meanwhile.

    Example:
        >>> with native_notes_hidden() as screen:
        ...     screen.writable()
        True
    """
    try:
        kept = None if _loud() else os.dup(2)
    except OSError:
        kept = None  # There is no standard error to keep clean.
    if kept is None:
        yield sys.stderr
        return
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with open(kept, "w", encoding=sys.stderr.encoding, errors="replace", buffering=1) as screen:
        os.dup2(nowhere, 2)
        try:
            yield screen
        finally:
            screen.flush()
            os.dup2(kept, 2)
            os.close(nowhere)


def _loud() -> bool:
    return os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0" or bool(os.environ.get("MMFUSION_DEBUG"))
