"""The peer of the data pipeline: a PyTorch dataset of photos and captions, with PIL and Hugging Face's `tokenizers`.

It imports neither TensorFlow nor mmfusion, so that the worker processes of a `DataLoader` are light.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from tokenizers import BertWordPieceTokenizer
from torch.utils.data import DataLoader, Dataset, RandomSampler

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Row:
    """A picture's file and its captions."""

    path: str
    captions: tuple[str, ...]
    image_id: int


@dataclass(frozen=True)
class Preparation:
    """What happens to a picture, as in a recipe."""

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    color: float


class Photos(Dataset):
    """Decodes, resizes, augments and normalises a picture, and draws one of its captions."""

    def __init__(self, rows: list[Row], preparation: Preparation) -> None:
        self.rows = rows
        self.preparation = preparation

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str, int]:
        row = self.rows[index]
        picture = resized(open_picture(row.path), self.preparation)
        pixels = normalized(jittered(cropped_and_flipped(picture, self.preparation), self.preparation), self.preparation)
        caption = row.captions[int(torch.randint(len(row.captions), ()))]
        return pixels, caption, row.image_id


def open_picture(path: str) -> Image.Image:
    """A file as upright RGB, what is transparent over white."""
    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file)
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
            picture = Image.alpha_composite(white, picture)
        return picture.convert("RGB")


def resized(picture: Image.Image, preparation: Preparation) -> Image.Image:
    """Squashed to the size, bicubic with antialiasing."""
    return picture.resize((preparation.width, preparation.height), Image.Resampling.BICUBIC)


def cropped_and_flipped(picture: Image.Image, preparation: Preparation) -> Image.Image:
    """A random part of the picture at the picture's size, mirrored or not."""
    if preparation.crop_scale != (1.0, 1.0):
        area = uniform(*preparation.crop_scale)
        ratio = math.exp(uniform(math.log(preparation.crop_ratio[0]), math.log(preparation.crop_ratio[1])))
        width = max(round(picture.width * min(math.sqrt(area * ratio), 1.0)), 1)
        height = max(round(picture.height * min(math.sqrt(area / ratio), 1.0)), 1)
        left = int(uniform(0.0, picture.width - width + 1.0))
        top = int(uniform(0.0, picture.height - height + 1.0))
        box = (left, top, left + width, top + height)
        picture = picture.resize(picture.size, Image.Resampling.BILINEAR, box=box)
    if preparation.flip and uniform(0.0, 1.0) < 0.5:
        picture = ImageOps.mirror(picture)
    return picture


def jittered(picture: Image.Image, preparation: Preparation) -> torch.Tensor:
    """Brightness, contrast and saturation in one product of matrices: ``float32[H, W, 3]`` in [0, 255]."""
    pixels = torch.from_numpy(np.array(picture)).float()
    if not preparation.color:
        return pixels
    brightness, contrast, saturation = (uniform(1.0 - preparation.color, 1.0 + preparation.color) for _ in range(3))
    luma = torch.tensor(_LUMA)[:, None].expand(3, 3)
    matrix = brightness * contrast * (saturation * torch.eye(3) + (1.0 - saturation) * luma)
    offset = brightness * (1.0 - contrast) * pixels.mean()
    return (pixels @ matrix).add_(offset).clamp_(0.0, 255.0)


def normalized(pixels: torch.Tensor, preparation: Preparation) -> torch.Tensor:
    """``float32[3, H, W]`` as the model sees it."""
    mean, std = torch.tensor(preparation.mean), torch.tensor(preparation.std)
    return ((pixels / 255.0 - mean) / std).permute(2, 0, 1).contiguous()


def uniform(low: float, high: float) -> float:
    """A random number; torch seeds it differently in each worker."""
    return low + (high - low) * float(torch.rand(()))


class Collate:
    """Stacks a batch and tokenizes its captions at once."""

    def __init__(self, vocabulary_file: str, max_length: int, lowercase: bool) -> None:
        self.vocabulary_file = vocabulary_file
        self.max_length = max_length
        self.lowercase = lowercase
        self._tokenizer: BertWordPieceTokenizer | None = None

    @property
    def tokenizer(self) -> BertWordPieceTokenizer:
        """Made in the worker: it cannot be sent there."""
        if self._tokenizer is None:
            # The workers are parallel already.
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            self._tokenizer = BertWordPieceTokenizer(self.vocabulary_file, lowercase=self.lowercase)
            self._tokenizer.enable_truncation(self.max_length)
            self._tokenizer.enable_padding(length=self.max_length)
        return self._tokenizer

    def __call__(self, items: list[tuple[torch.Tensor, str, int]]) -> dict[str, torch.Tensor]:
        pixels, captions, image_ids = zip(*items, strict=True)
        encodings = self.tokenizer.encode_batch(list(captions))
        return {
            "image": torch.stack(pixels),
            "token_ids": torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int32),
            "token_mask": torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.bool),
            "image_id": torch.tensor(image_ids, dtype=torch.int32),
        }


def build_loader(
    rows: list[Row], preparation: Preparation, collate: Collate, *, batch_size: int, batches: int, workers: int
) -> DataLoader[Any]:
    """A loader of so many batches in random order, epoch after epoch; its workers stay."""
    photos = Photos(rows, preparation)
    return DataLoader(
        photos,
        batch_size=batch_size,
        sampler=RandomSampler(photos, num_samples=batch_size * batches),
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        # A fork would copy TensorFlow's threads in the middle of whatever they do.
        multiprocessing_context="forkserver" if workers > 0 else None,
    )
