"""The functions of a LiteRT or ONNX export behind the signatures of a SavedModel."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mmfusion.config import load_recipe
from mmfusion.data import Transform
from mmfusion.export.portable_captions import PortableCaptions
from mmfusion.export.portable_step import LOGITS, STEP
from mmfusion.export.runtime import Runtime, open_runtime
from mmfusion.models.captioning import best_caption
from mmfusion.text import WordPieceTokenizer

Signatures = dict[str, Callable[..., dict[str, tf.Tensor]]]


def portable_functions(folder: Path, description: dict[str, Any]) -> Signatures:
    """Opens an export: files and sentences are read by TensorFlow, as the model was trained; all else the runtime computes.

    Args:
        folder: The export's folder.
        description: What is in its ``mmfusion.json``.

    Returns:
        ``encode_image``, ``encode_text``, ``encode_text_ids``, ``match`` and ``caption``, those that there are functions for,
        with the inputs and outputs of `mmfusion.export.serving_functions`.

    Raises:
        ExportError: If the runtime is not installed, or a file is missing or broken.
    """
    from mmfusion.export.portable import VOCABULARY
    from mmfusion.training.experiment import image_transform, load_tokenizer

    recipe = load_recipe(folder / "recipe.yaml")
    tokenizer, transform = load_tokenizer(recipe, folder / VOCABULARY), image_transform(recipe)
    return _Signatures(open_runtime(folder, description), description, tokenizer, transform).by_name()


class _Signatures:
    def __init__(
        self, runtime: Runtime, description: dict[str, Any], tokenizer: WordPieceTokenizer, transform: Transform
    ) -> None:
        self.runtime = runtime
        self.description = description
        self.tokenizer = tokenizer
        self.transform = transform

    def by_name(self) -> Signatures:
        known = self.description["functions"]
        found: Signatures = {}
        if "encode_image" in known:
            found |= {"encode_image": self.encode_image, "encode_text": self.encode_text, "encode_text_ids": self.encode_text_ids}
        if "match" in known:
            found["match"] = self.match
        if "caption_step" in known:
            found["caption"] = self.caption
        return found

    def encode_image(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._run("encode_image", self._pictures(image_bytes))

    def encode_text(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._run("encode_text", self._words(text))

    def encode_text_ids(self, token_ids: tf.Tensor, token_mask: tf.Tensor) -> dict[str, tf.Tensor]:
        # The functions have one length; what is behind the mask changes nothing.
        room = [[0, 0], [0, self.tokenizer.max_length - tf.shape(token_ids)[1]]]
        padded = {"token_ids": tf.pad(token_ids, room), "token_mask": tf.pad(token_mask, room)}
        return self._run("encode_text", {name: value.numpy() for name, value in padded.items()})

    def match(self, image_bytes: tf.Tensor, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._run("match", self._pictures(image_bytes) | self._words(text))

    def caption(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        options = self.description["decoding"]["options"]
        penalty = options.get("length_penalty", 1.0) if options["method"] == "beam" else 1.0
        token_ids, score = best_caption(self.captions(self._pictures(image_bytes)), penalty)
        return {"caption": self.tokenizer.detokenize(token_ids), "score": score}

    @cached_property
    def captions(self) -> PortableCaptions:
        said = self.description
        # "float32[None, V]".
        vocabulary_size = int(said["functions"][STEP]["outputs"][LOGITS].rstrip("]").rpartition(", ")[2])
        return PortableCaptions(self.runtime, said["decoding"], said["state"], vocabulary_size, said["batch_size"])

    def _run(self, function: str, inputs: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
        return {name: tf.constant(value) for name, value in self.runtime.run(function, inputs).items()}

    def _words(self, text: tf.Tensor) -> dict[str, np.ndarray]:
        tokens = self.tokenizer(text)
        return {"token_ids": tokens.token_ids.numpy(), "token_mask": tokens.token_mask.numpy()}

    def _pictures(self, image_bytes: tf.Tensor) -> dict[str, np.ndarray]:
        return pictures_read(self.transform, list(image_bytes))


def pictures_read(transform: Transform, contents: list[Any]) -> dict[str, np.ndarray]:
    """Files into what the functions take of them.

    Args:
        transform: The model's.
        contents: The bytes of each file; of several images an example, a list of each.

    Returns:
        ``pixels``, and of clips and several images ``image_mask``.

    Raises:
        tf.errors.OpError: If one is no image.
    """
    seen = [transform(tf.constant(content)) for content in contents]
    if transform.frames == 1:
        return {"pixels": np.stack(seen)}
    return {"pixels": np.stack([clip.image for clip in seen]), "image_mask": np.stack([clip.image_mask for clip in seen])}
