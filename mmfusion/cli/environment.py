"""What every command sets before TensorFlow is imported."""

from __future__ import annotations

import os


def quiet_tensorflow() -> None:
    """Keeps TensorFlow's start-up notes off the screen; what the user set in the environment stays.

    Example:
        >>> import os
        >>> quiet_tensorflow()
        >>> os.environ["TF_CPP_MIN_LOG_LEVEL"] in "0123"
        True
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
