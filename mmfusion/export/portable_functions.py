"""The functions of a LiteRT or ONNX export behind the signatures of a SavedModel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mmfusion.config import load_recipe
from mmfusion.data import Transform
from mmfusion.decoding import TokenRules, compiled
from mmfusion.export.portable_step import LOGITS, STEP, PortableStep
from mmfusion.export.runtime import Runtime, open_runtime
from mmfusion.models.captioning import METHODS, best_caption, filled_up, power_of_two
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
        self.write: Callable[..., Any] | None = None

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
        state = self._run("caption_start", self._pictures(image_bytes))
        rows = _rows(state)
        if self.write is None:
            self.write = compiled(self._writing(self._vocabulary_size(state)))
        # Few sizes of batch, since each is a graph.
        output = self.write(filled_up(state, rows, power_of_two(rows)))
        output = type(output)(*(part[:rows] for part in output))
        options = self.description["decoding"]["options"]
        penalty = options.get("length_penalty", 1.0) if options["method"] == "beam" else 1.0
        token_ids, score = best_caption(output, penalty)
        return {"caption": self.tokenizer.detokenize(token_ids), "score": score}

    def _writing(self, vocabulary_size: int) -> Callable[[dict[str, tf.Tensor]], Any]:
        """From the first state to what decoding gives."""
        said = self.description["decoding"]
        options = dict(said["options"])
        method, rules = options.pop("method"), {name: said[name] for name in ("min_tokens", "forbidden_ids")}
        rules |= {name: options.pop(name) for name in TokenRules._fields if name in options}
        step = PortableStep(self.runtime, self.description["state"], vocabulary_size)
        return lambda state: METHODS[method](
            step,
            state,
            batch_size=_rows(state),
            rules=TokenRules(**rules),
            **{name: said[name] for name in ("start_id", "end_id", "pad_id", "max_tokens")},
            **options,
        )

    def _vocabulary_size(self, state: dict[str, tf.Tensor]) -> int:
        # By asking about a first token: descriptions of exports do not say it.
        tokens = np.full(_rows(state), self.description["decoding"]["start_id"], "int32")
        answer = self.runtime.run(STEP, {"token_ids": tokens, **{name: value.numpy() for name, value in state.items()}})
        return int(answer[LOGITS].shape[-1])

    def _run(self, function: str, inputs: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
        return {name: tf.constant(value) for name, value in self.runtime.run(function, inputs).items()}

    def _words(self, text: tf.Tensor) -> dict[str, np.ndarray]:
        tokens = self.tokenizer(text)
        return {"token_ids": tokens.token_ids.numpy(), "token_mask": tokens.token_mask.numpy()}

    def _pictures(self, image_bytes: tf.Tensor) -> dict[str, np.ndarray]:
        return pictures_read(self.transform, list(image_bytes))


def _rows(state: dict[str, tf.Tensor]) -> int:
    """The batch of a state, whose tensors have it first, or are scalars."""
    return next(int(value.shape[0]) for value in state.values() if len(value.shape))


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
