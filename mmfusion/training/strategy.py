"""Where a training runs: a word of the recipe into a `tf.distribute` strategy."""

from __future__ import annotations

import functools

import tensorflow as tf

from mmfusion.errors import ConfigError


def build_strategy(name: str, devices: int | None = None, *, batch_size: int) -> tf.distribute.Strategy:
    """The distribution strategy of a word.

    Args:
        name: ``"one"`` (Keras's default device) or ``"mirrored"``.
        devices: How many devices ``"mirrored"`` takes; None takes all GPUs, or all logical CPUs where there is no GPU.
        batch_size: The global batch; it must divide evenly over the replicas.

    Returns:
        The strategy.

    Raises:
        ConfigError: If there are fewer devices, the batch does not divide, or the word is unknown.

    Example:
        >>> from mmfusion.training import build_strategy
        >>> build_strategy("one", batch_size=8).num_replicas_in_sync
        1
    """
    if name == "one":
        return tf.distribute.get_strategy()
    if name != "mirrored":
        raise ConfigError("unknown strategy", where="train.strategy", expected="one or mirrored", found=name)
    available = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    count = len(available) if devices is None else devices
    if count > len(available):
        raise ConfigError("not so many devices here", where="train.devices", expected=f"at most {len(available)}", found=count)
    if batch_size % count:
        raise ConfigError(
            "the batch does not divide over the devices",
            where="train.batch_size",
            expected=f"a multiple of {count}",
            found=batch_size,
        )
    return _mirrored(tuple(device.name for device in available[:count]))


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    # One strategy a set of devices and process: each numbers its collectives from the same start, so that those of two
    # strategies meet in TensorFlow's one table and fail with "Shape mismatch in the collective instance".
    return tf.distribute.MirroredStrategy(list(devices))
