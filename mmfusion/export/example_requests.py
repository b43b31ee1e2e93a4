"""A picture, a sentence and options to ask the signatures of an export about: its examples and its warm-up requests."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmfusion.export.example_pictures import example_clip, example_image
from mmfusion.text import WordPieceTokenizer

REQUEST = "request.py"
SENTENCE = "a colourful square"


def picture_name(description: Mapping[str, Any]) -> str:
    """The example's file: a clip for a model that sees clips, else a picture.

    Args:
        description: What is in an export's ``mmfusion.json``.
    """
    return "picture.gif" if description["frames"] > 1 and not description["several_images"] else "picture.jpg"


def example_values(description: Mapping[str, Any], tokenizer: WordPieceTokenizer) -> dict[str, np.ndarray]:
    """A value of each input that a signature may have: of one example, or of as many as the export's fixed batch.

    Args:
        description: What is in the export's ``mmfusion.json``.
        tokenizer: The model's.

    Returns:
        Arrays by input; files and texts are arrays of bytes.
    """
    rows = description["batch_size"] or 1
    picture: Any = example_clip() if picture_name(description).endswith("gif") else example_image()
    files = np.empty([rows, 1] if description["several_images"] else [rows], object)
    files[...] = picture
    texts = np.array([SENTENCE.encode()] * rows, object)
    tokens = tokenizer([SENTENCE] * rows)
    values = {
        "image_bytes": files,
        "text": texts,
        "token_ids": tokens.token_ids.numpy(),
        "token_mask": tokens.token_mask.numpy(),
        "seed": np.arange(rows, dtype="int32"),
    }
    return values | option_values(description)


def option_values(description: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A value of each option that ``caption_sample`` and ``caption_beam`` take.

    Args:
        description: What is in the export's ``mmfusion.json``.
    """
    if "caption_options" not in description:
        return {}
    numbers = {"temperature": 1.0, "top_p": 0.9, "length_penalty": 1.0}
    lengths = {"min_tokens": 1, "max_tokens": description["caption_options"]["max_tokens"]}
    return {name: np.array(value, "float32") for name, value in numbers.items()} | {
        name: np.array(value, "int32") for name, value in lengths.items()
    }


def write_examples(folder: Path, description: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> None:
    """Writes a picture, requests as TensorFlow Serving's REST takes them, and a script that asks each signature.

    Args:
        folder: Where to; it is made.
        description: What is in the export's ``mmfusion.json``.
        values: See `example_values`.
    """
    folder.mkdir()
    (folder / picture_name(description)).write_bytes(values["image_bytes"].ravel()[0])
    known = description["signatures"]
    name = next(name for name in ("caption", "encode_image", "match", *known) if name in known)
    columns = {key: _plain(values[key]) for key in known[name]}
    instances = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    _write(folder / "request.json", {"signature_name": name, "instances": instances})
    for name in ("caption_sample", "caption_beam"):
        if name in known:
            # By column: a row cannot say what is the same for all.
            inputs = {key: _plain(values[key]) for key in known[name]}
            _write(folder / f"{name}.json", {"signature_name": name, "inputs": inputs})
    shutil.copyfile(Path(__file__).with_name("request_example.py"), folder / REQUEST)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        # Pictures are not UTF-8, sentences are.
        return value.decode() if value == SENTENCE.encode() else {"b64": base64.b64encode(value).decode()}
    return value


def _write(path: Path, request: dict[str, Any]) -> None:
    path.write_text(json.dumps(request, indent=2) + "\n", encoding="utf-8")
