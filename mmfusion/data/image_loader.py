"""Loads single pictures of a table, tells bad ones apart, and remembers what it decoded."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mmfusion.data.clip_transform import Transform
from mmfusion.data.decoding import decode_image
from mmfusion.data.example import Example, ImageReference
from mmfusion.data.quarantine import Quarantine
from mmfusion.errors import ConfigError, DataError

_UNKNOWN, _GOOD, _BAD = 0, 1, 2


class ImageLoader:
    """Decoded and resized pictures, or clips, by their row; a bad picture is recorded, never raised.

    It runs in Python threads of `tf.data`, operator by operator: a traced function would wait there for the same thread
    pool that its caller keeps busy.

    Args:
        examples: The table.
        transform: How to decode and resize.
        quarantine: Where bad pictures are recorded; past its share, `load` raises.
        cache: ``"memory"`` keeps decoded pictures, 8 bits a channel, as many as fit into half of the memory that is
            free now; ``"none"`` decodes every time. Default ``"none"``.

    Example:
        >>> import pathlib, tempfile, tensorflow as tf
        >>> from mmfusion.data import Example, ImageLoader, ImageReference, ImageTransform, Quarantine
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "1.png").write_bytes(tf.io.encode_png(tf.zeros([4, 4, 3], tf.uint8)).numpy())
        >>> rows = [Example(ImageReference(str(folder / f"{i}.png")), ("a dot",), i, f"row {i}") for i in (1, 2)]
        >>> quarantine = Quarantine(None, total=2, max_share=0.5)
        >>> loader = ImageLoader(rows, ImageTransform(size=2), quarantine)
        >>> loader.load(0).shape, loader.load(1)
        ((2, 2, 3), None)
    """

    def __init__(
        self,
        examples: Sequence[Example],
        transform: Transform,
        quarantine: Quarantine,
        *,
        cache: str = "none",
    ) -> None:
        if cache not in ("memory", "none"):
            raise ConfigError("unknown cache", expected="memory or none", found=repr(cache))
        self.examples = examples
        self.transform = transform
        self.quarantine = quarantine
        self._states = np.full(len(examples), _UNKNOWN, np.uint8)
        slots = min(len(examples), _free_memory() // (2 * math.prod(transform.shape))) if cache == "memory" else 0
        # Not written to before it is needed: the operating system gives each page when its first picture comes.
        self._pixels = np.empty((slots, *transform.shape), np.uint8)
        self._counts = np.zeros(len(examples), np.int32)

    def load(self, index: int) -> np.ndarray | None:
        """The picture of a row.

        Returns:
            ``uint8[height, width, 3]`` (of clips ``uint8[F, height, width, 3]``, see `masks`), not to be written to, or None if
            it is bad.

        Raises:
            DataError: If too many are bad.
        """
        if self._states[index] == _BAD:
            return None
        if index < len(self._pixels) and self._states[index] == _GOOD:
            cached: np.ndarray = self._pixels[index]
            return cached
        example = self.examples[index]
        try:
            # On a machine with a GPU, single operators would go there and back.
            with tf.device("CPU:0"):
                pixels, self._counts[index] = self.transform.read([image.read() for image in example.images])
        except (DataError, tf.errors.OpError, MemoryError) as error:
            self._states[index] = _BAD
            self.quarantine.record(example.name, bad_image_reason(example, error))
            return None
        if index < len(self._pixels):
            # Two threads may both decode a picture; both write the same, and the state only afterwards.
            self._pixels[index] = pixels
            self._states[index] = _GOOD
        return pixels

    def load_or_next(self, index: int) -> tuple[int, np.ndarray]:
        """The picture of a row or, where that is bad, of the next good row.

        Which row stands in does not depend on what was loaded before, so that a resumed run sees the same batches.

        Returns:
            The row that was taken and its picture.

        Raises:
            DataError: If too many are bad, or all.
        """
        for step in range(len(self.examples)):
            row = (index + step) % len(self.examples)
            pixels = self.load(row)
            if pixels is not None:
                return row, pixels
        raise self.quarantine.fail(
            DataError("no readable image", where=self.quarantine.path, found=f"{len(self.examples)} bad ones")
        )

    def masks(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which pictures of loaded rows are real, of clips: ``bool[len(rows), F]``."""
        return np.arange(self.transform.frames) < self._counts[np.asarray(rows, np.int64)][:, None]


def bad_image_reason(example: Example, error: Exception) -> str:
    """Says in one line why a picture cannot be used, whatever was raised."""
    if isinstance(error, DataError):
        return str(error)
    image = example.image if len(example.images) == 1 else next(filter(_is_bad, example.images), example.image)
    if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
        return str(DataError("the image is too large to decode", where=image))
    try:
        content = image.read()
    except DataError as missing:
        return str(missing)
    found = f"{len(content):,} bytes starting with {content[:8]!r}" if content else "an empty file"
    expected = "a whole JPEG, PNG, WebP, GIF or BMP"
    if "animated WebP" in str(error):
        expected, found = "an animated GIF", "an animated WebP, of which only the first frame can be decoded"
    return str(DataError("not a readable image", where=image, expected=expected, found=found))


def _is_bad(image: ImageReference) -> bool:
    try:
        decode_image(tf.constant(image.read()))
    except (DataError, tf.errors.OpError, MemoryError):
        return True
    return False


def _free_memory() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 << 30
