"""What all tests share: quiet TensorFlow on two logical devices, and the data beside the repository.

With KERAS_BACKEND=jax the tests of layers, fusion, encoders, losses, models and decoding run on JAX (`make test-jax`).
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import tensorflow as tf

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# JAX compiles each operation of each shape, a loop even each time: most of these tests' time. What was compiled once is kept.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core for itself: more threads only get into each other's way.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

if os.environ["KERAS_BACKEND"] == "tensorflow":
    import tensorflow as tf

    # Two logical devices stand for two GPUs; TensorFlow takes this only before its first operation.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )


# Loops, which JAX compiles anew at each call outside of a graph, and what other variants show already.
SLOW_ON_JAX = re.compile(
    r"(test_cache|test_transformer_block|test_attention|test_every_layer|test_attention_options)\.py.*(chunked|local|linear)"
    r"|test_every_fusion\.py.*(functional_model|unknown_sizes|what_drops|places_of_a_cache)"
    r"|test_every_fusion\.py.*\[(cross |co |gated alone|resampler of|recurrent)"
    r"|test_every_layer\.py.*(test_fit|half_precision)"
    r"|test_beam_search\.py.*(brute_force|plain_search\[[^\]]*-(2|4)\]|longer|depend_on_its_batch|own_score|in_graph)"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On JAX, marks as slow what takes minutes there alone; `make test-jax SELECT=""` runs it too."""
    if os.environ["KERAS_BACKEND"] == "jax":
        for item in items:
            if SLOW_ON_JAX.search(item.nodeid):
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws its weights and dropout from the same seed: what fails, fails again."""
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture
def two_devices() -> tf.distribute.Strategy:
    """Two replicas on two logical CPUs."""
    from mmfusion.training import build_strategy

    return build_strategy("mirrored", 2, batch_size=2)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real photos and weights that lies beside the repository, where it is there."""
    folder = Path(os.environ.get("MMFUSION_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip("needs ../shared")
    return folder
