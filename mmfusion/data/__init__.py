"""Pictures with captions: sources, transforms, and the pipeline from files to batches.

Everything loads when it is first used: a table can be read without TensorFlow, and TFDS is only imported for its data.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmfusion.data.augmentation import Augmentation
    from mmfusion.data.builtin import LANGUAGES, read_builtin
    from mmfusion.data.check import SourceReport, check_source
    from mmfusion.data.clip_maker import make_clips
    from mmfusion.data.clip_transform import Clip, ClipTransform, Transform
    from mmfusion.data.csv_table import read_csv
    from mmfusion.data.decoding import decode_image
    from mmfusion.data.drawn_scenes import DrawnScenes, draw_scenes
    from mmfusion.data.evaluation_pipeline import build_eval_images, build_eval_texts
    from mmfusion.data.example import BadRow, Example, ImageReference
    from mmfusion.data.folder import read_folder
    from mmfusion.data.frames import decode_frames, frame_places
    from mmfusion.data.image_loader import ImageLoader
    from mmfusion.data.image_transform import ImageTransform
    from mmfusion.data.jsonl import read_jsonl
    from mmfusion.data.opening import SOURCES, open_source
    from mmfusion.data.pipeline import build_train_dataset, steps_per_epoch
    from mmfusion.data.quarantine import Quarantine
    from mmfusion.data.source import Source
    from mmfusion.data.tfds_builder import read_tfds
    from mmfusion.data.tfrecord import read_tfrecord, write_tfrecord
    from mmfusion.data.webdataset import read_webdataset, write_webdataset

_HOMES = {
    "Augmentation": "augmentation",
    "BadRow": "example",
    "Clip": "clip_transform",
    "ClipTransform": "clip_transform",
    "DrawnScenes": "drawn_scenes",
    "Example": "example",
    "ImageLoader": "image_loader",
    "ImageReference": "example",
    "ImageTransform": "image_transform",
    "LANGUAGES": "builtin",
    "Quarantine": "quarantine",
    "SOURCES": "opening",
    "Source": "source",
    "SourceReport": "check",
    "Transform": "clip_transform",
    "build_eval_images": "evaluation_pipeline",
    "build_eval_texts": "evaluation_pipeline",
    "build_train_dataset": "pipeline",
    "check_source": "check",
    "decode_frames": "frames",
    "decode_image": "decoding",
    "draw_scenes": "drawn_scenes",
    "frame_places": "frames",
    "make_clips": "clip_maker",
    "open_source": "opening",
    "read_builtin": "builtin",
    "read_csv": "csv_table",
    "read_folder": "folder",
    "read_jsonl": "jsonl",
    "read_tfds": "tfds_builder",
    "read_tfrecord": "tfrecord",
    "read_webdataset": "webdataset",
    "steps_per_epoch": "pipeline",
    "write_tfrecord": "tfrecord",
    "write_webdataset": "webdataset",
}

__all__ = [
    "LANGUAGES",
    "SOURCES",
    "Augmentation",
    "BadRow",
    "Clip",
    "ClipTransform",
    "DrawnScenes",
    "Example",
    "ImageLoader",
    "ImageReference",
    "ImageTransform",
    "Quarantine",
    "Source",
    "SourceReport",
    "Transform",
    "build_eval_images",
    "build_eval_texts",
    "build_train_dataset",
    "check_source",
    "decode_frames",
    "decode_image",
    "draw_scenes",
    "frame_places",
    "make_clips",
    "open_source",
    "read_builtin",
    "read_csv",
    "read_folder",
    "read_jsonl",
    "read_tfds",
    "read_tfrecord",
    "read_webdataset",
    "steps_per_epoch",
    "write_tfrecord",
    "write_webdataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
