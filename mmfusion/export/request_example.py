"""Asks each signature of this export about a picture and a sentence; needs tensorflow and tensorflow_text.

Captions with options (``caption_sample``, ``caption_beam``) are there if the export has them; their options stand in `options`.

python examples/request.py [PICTURE] [SENTENCE]
python examples/request.py --batch REQUEST.npz ANSWER.npz
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the tokenizer's operators

HERE = pathlib.Path(__file__).resolve().parent


def ask(model: Any, image_bytes: list[Any], text: list[str], **more: np.ndarray) -> dict[str, np.ndarray]:
    """Answers of all signatures whose inputs are given, as {"signature/output": array}."""
    answers = {}
    inputs = [signature.structured_input_signature[1].get("image_bytes") for signature in model.signatures.values()]
    if any(spec is not None and len(spec.shape) == 2 for spec in inputs):
        # A model of several pictures: rows of files, empty where an example has fewer.
        rows = [[row] if isinstance(row, bytes) else list(row) for row in image_bytes]
        image_bytes = [row + [b""] * (max(map(len, rows)) - len(row)) for row in rows]
    values = {"image_bytes": tf.constant(image_bytes), "text": tf.constant(text)}
    values.update({name: tf.constant(value) for name, value in more.items()})
    for name, signature in sorted(model.signatures.items()):
        inputs = signature.structured_input_signature[1]
        if name == "serving_default" or not set(inputs) <= set(values):
            continue
        for output, value in call(signature, {key: values[key] for key in inputs}).items():
            answers[f"{name}/{output}"] = value
    return answers


def call(signature: Any, values: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
    """One call; where the export has a fixed batch as many as are needed, the last filled up with copies of its last example."""
    specs = signature.structured_input_signature[1].values()
    size = next(spec.shape[0] for spec in specs if spec.shape.rank)
    count = max(int(value.shape[0]) for value in values.values() if value.shape.rank)
    parts = []
    for start in range(0, count, size or count):
        rows = np.minimum(np.arange(start, start + (size or count)), count - 1)
        answer = signature(**{key: tf.gather(value, rows) if value.shape.rank else value for key, value in values.items()})
        parts.append({key: value.numpy() for key, value in answer.items()})
    return {key: np.concatenate([part[key] for part in parts])[:count] for key in parts[0]}


def options(count: int) -> dict[str, np.ndarray]:
    """What captions with options are asked for: a seed for each picture, and what is the same for all."""
    described = json.loads((HERE.parent / "mmfusion.json").read_text(encoding="utf-8"))
    if "caption_options" not in described:
        return {}
    longest = described["caption_options"]["max_tokens"]
    numbers = {"temperature": 1.0, "top_p": 0.9, "length_penalty": 1.0}
    lengths = {"min_tokens": 1, "max_tokens": longest, "seed": np.arange(count)}
    values = {name: np.array(value, "float32") for name, value in numbers.items()}
    return values | {name: np.array(value, "int32") for name, value in lengths.items()}


def main(arguments: list[str]) -> None:
    """Answers for one picture and one sentence, or for a file of them."""
    model = tf.saved_model.load(str(HERE.parent))
    if arguments[:1] == ["--batch"]:
        request = np.load(arguments[1], allow_pickle=False)
        lengths, buffer = request["lengths"], request["bytes"].tobytes()
        ends = np.cumsum(lengths).reshape(lengths.shape)
        files = np.vectorize(lambda end, length: buffer[end - length : end], otypes=[object])
        images = files(ends, lengths).tolist()
        more = {name: request[name] for name in request.files if name not in ("lengths", "bytes", "text")}
        answers = ask(model, images, [str(text) for text in request["text"]], **more)
        encoded: dict[str, Any] = {}
        for key, value in answers.items():
            if value.dtype == object:
                value = np.array([item.decode("utf-8", "replace") for item in value.ravel()]).reshape(value.shape)
            encoded[key] = value
        np.savez(arguments[2], **encoded)
        print(sorted(name.split(".")[0] for name in sys.modules if name in ("keras", "mmfusion")))
        return
    picture = pathlib.Path(arguments[0]) if arguments else next(HERE.glob("picture.*"))
    sentence = arguments[1] if len(arguments) > 1 else "a colourful square"
    for key, value in ask(model, [picture.read_bytes()], [sentence], **options(1)).items():
        print(f"{key:26} {value.shape!s:22} {value.ravel()[:4]}")


if __name__ == "__main__":
    main(sys.argv[1:])
