"""A run that never trained, its export, and pictures of several kinds and sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from untrained import untrained_run

from mmfusion.export import export_model
from mmfusion.training import LoadedRun, load_run


@pytest.fixture(scope="session")
def exports(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="session")
def run(exports) -> LoadedRun:
    return load_run(untrained_run(exports / "run"))


@pytest.fixture(scope="session")
def export(exports, run) -> Path:
    return export_model(run, exports / "untrained")


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """Five: PNG and JPEG, of other sizes than the model's."""
    random = np.random.default_rng(0)
    encoders = (tf.io.encode_png, tf.io.encode_jpeg, tf.io.encode_png, tf.io.encode_jpeg, tf.io.encode_png)
    sizes = ((24, 32), (40, 30), (9, 70), (64, 64), (1, 1))
    return [
        encode(tf.constant(random.integers(0, 256, (*size, 3)), tf.uint8)).numpy()
        for encode, size in zip(encoders, sizes, strict=True)
    ]
