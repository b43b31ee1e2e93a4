"""How much decoding remembers, as a sum that every fusion style is made of."""

from __future__ import annotations

from dataclasses import dataclass

import keras


@dataclass(frozen=True)
class CacheSize:
    """How many numbers the state of decoding holds. Masks, positions and what a search itself keeps are left out: they are few.

    A state of B images with K texts each, of numbers of s bytes, takes ``s·(B·shared + B·K·own) + 4·B·K·scores`` bytes. While a
    step runs, the caches it has written may stand beside those it was given.

    Attributes:
        shared: Of an image, however many texts are written about it: keys and values of cross-attention.
        own: Of each text: keys and values of self-attention, for all the room that there is, and what a style puts before them.
        scores: Of each text, in float32: where tokens that stand for the image have looked.

    Example:
        >>> from mmfusion.fusion import CacheSize
        >>> size = 2 * CacheSize(shared=100, own=30) + CacheSize(own=1)
        >>> size, size.bytes(images=2, texts=3, dtype="bfloat16")
        (CacheSize(shared=200, own=61, scores=0), 1532)
    """

    shared: int = 0
    own: int = 0
    scores: int = 0

    def __add__(self, other: CacheSize) -> CacheSize:
        return CacheSize(self.shared + other.shared, self.own + other.own, self.scores + other.scores)

    def __mul__(self, times: int) -> CacheSize:
        return CacheSize(self.shared * times, self.own * times, self.scores * times)

    __rmul__ = __mul__

    def bytes(self, images: int, texts: int = 1, dtype: str = "float32") -> int:
        """Bytes of a whole state.

        Args:
            images: B.
            texts: K, beams or samples of each image. Default 1.
            dtype: In which the model computes, and so remembers. Default ``"float32"``.
        """
        size = keras.backend.standardize_dtype(dtype)
        width = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}[size]
        return images * (width * (self.shared + texts * self.own) + 4 * texts * self.scores)


def keys_and_values(tokens: int, width: int) -> int:
    """Numbers of the keys and values of N tokens, ``2·N·Hkv·d`` with Hkv heads of width d.

    Example:
        >>> keys_and_values(10, 4)
        80
    """
    return 2 * tokens * width
