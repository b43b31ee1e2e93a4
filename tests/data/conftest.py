"""Small pictures and tables that the tests of the data share."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmfusion.data import Example, ImageReference, Source
from mmfusion.text import WordPieceTokenizer

Encode = Callable[..., bytes]


@pytest.fixture(scope="session")
def encode() -> Encode:
    """Encodes an array or a Pillow image in any format that Pillow writes."""

    def encode(image: Any, format: str = "PNG", **options: Any) -> bytes:
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def gradient() -> np.ndarray:
    """A smooth picture ``uint8[40, 60, 3]`` whose every corner differs."""
    rows, columns = np.mgrid[0:40, 0:60]
    return np.stack([rows * 6, columns * 4, (rows + columns) * 2], axis=-1).astype(np.uint8)


@pytest.fixture
def picture_source(tmp_path: Path, encode: Encode) -> Callable[..., Source]:
    """Makes a source of single-coloured PNGs: picture i has brightness 10 i and the captions ``number i word k``."""

    def make(count: int = 10, captions: int | Iterable[int] = 3, split: str = "train", first: int = 0) -> Source:
        counts = [captions] * count if isinstance(captions, int) else list(captions)
        rows = []
        for index in range(first, first + count):
            file = tmp_path / f"{index:03d}.png"
            file.write_bytes(encode(np.full((8, 8, 3), 10 * index % 256, np.uint8)))
            texts = tuple(f"number {index} word {k}" for k in range(counts[index - first]))
            rows.append(Example(ImageReference(str(file)), texts, index, f"captions.jsonl:{index + 1}"))
        return Source("pictures", {split: rows})

    return make


@pytest.fixture(scope="session")
def tokenizer() -> WordPieceTokenizer:
    """Words of `picture_source`, numbers digit by digit."""
    digits = [*"0123456789", *(f"##{digit}" for digit in range(10))]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "number", "word", *digits]
    return WordPieceTokenizer(vocabulary=vocabulary, max_length=12)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[[Iterable[Any]], Path]:
    """Writes rows, or lines as they are, as ``captions.jsonl``."""

    def write(rows: Iterable[Any]) -> Path:
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path = tmp_path / "captions.jsonl"
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path

    return write
