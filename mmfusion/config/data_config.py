"""What to train on and how pictures are prepared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmfusion.config.section import Section

Share = Annotated[float, Field(ge=0.0, le=1.0)]
#: Of an example.
MOST_FRAMES = 1024
Pixels = Annotated[int, Field(ge=1, le=4096)]


class AugmentConfig(Section):
    """How training pictures vary."""

    flip: bool = Field(False, description="Mirror half of the pictures; wrong where left and right matter.")
    crop_scale: tuple[Share, Share] = Field((1.0, 1.0), description="Smallest and largest share of the area that a crop keeps.")
    crop_ratio: tuple[float, float] = Field((0.75, 1.3333), description="Narrowest and widest aspect ratio of a crop.")
    color: Share = Field(0.0, description="Strength of changes of brightness, contrast and saturation.")

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        if not 0.0 < self.crop_scale[0] <= self.crop_scale[1]:
            raise ValueError("crop_scale: expected 0 < smallest <= largest, found " + str(list(self.crop_scale)))
        if not 0.0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError("crop_ratio: expected 0 < narrowest <= widest, found " + str(list(self.crop_ratio)))
        return self


class DataConfig(Section):
    """Where pictures and captions come from."""

    source: Literal["builtin", "jsonl", "csv", "folder", "tfds", "tfrecord", "webdataset"] = Field(
        "builtin", description="Kind of the data."
    )
    path: str | None = Field(None, description="File or folder (for tfds: its data_dir; patterns for tar and TFRecord files).")
    name: str | None = Field(None, description="Builder's name, for tfds.")
    languages: tuple[str, ...] = Field(("en",), min_length=1, description="Languages of the built-in set's names.")
    source_language: str | None = Field(
        None,
        description="Language to translate from into languages (builtin; rows of jsonl have a source); none does not.",
    )
    train_split: str = Field("train", description="Split to train on.")
    validation_split: str = Field("val", description="Split to choose by.")
    validation_share: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="Share split off for validation where the data has no such split."
    )
    image_size: Pixels | tuple[Pixels, Pixels] = Field(224, description="Side of the square, or height and width, in pixels.")
    resize: Literal["squash", "crop", "pad"] = Field("squash", description="How other shapes become that size.")
    frames: Annotated[int, Field(ge=1, le=MOST_FRAMES)] = Field(
        1, description="Pictures an example holds: frames of a clip (an animated GIF), or several images; 1 takes a first frame."
    )
    frame_sampling: Literal["uniform", "start"] = Field(
        "uniform", description="Which frames of a longer clip: spread from first to last, or the first ones."
    )
    mean: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="Subtracted from pixels in [0, 1].")
    std: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="Divides what is left.")
    augment: AugmentConfig = AugmentConfig()
    captions: Literal["sample", "all"] = Field(
        "sample", description="An epoch shows each image with one caption drawn anew, or each pair of image and caption."
    )
    max_bad_share: Share = Field(0.01, description="Largest share of bad examples before training stops.")
    cache: Literal["memory", "none"] = Field("memory", description="Whether decoded pictures stay in memory.")
    limit: Annotated[int, Field(ge=1)] | None = Field(None, description="Only so many training images.")

    @model_validator(mode="after")
    def _complete(self) -> DataConfig:
        if self.source == "tfds" and not self.name:
            raise ValueError("name: expected the builder's name for source tfds, found none")
        if self.source not in ("builtin", "tfds") and not self.path:
            raise ValueError(f"path: expected a file or folder for source {self.source}, found none")
        if self.source_language is not None:
            if self.source not in ("builtin", "jsonl"):
                raise ValueError(f"source_language: expected none for source {self.source} (builtin and jsonl have it)")
            if self.source == "builtin" and set(self.languages) <= {self.source_language}:
                raise ValueError(f"languages: expected another one than source_language {self.source_language} to translate into")
            if self.frames > 1:
                raise ValueError(f"frames: expected 1 with source_language, found {self.frames}")
        if min(self.std) <= 0:
            raise ValueError("std: expected positive numbers, found " + str(list(self.std)))
        return self

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
