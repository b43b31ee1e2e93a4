"""Captions with options as inputs. TensorFlow's signatures have no optional inputs, so these stand beside ``caption``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from mmfusion.config import DecodingConfig
from mmfusion.decoding import BeamOutput, DecodeOutput
from mmfusion.export.serving_function import ServingFunction
from mmfusion.models import ImageTextModel
from mmfusion.models.captioning import checked_length, mean_scores
from mmfusion.text import WordPieceTokenizer

Pictures = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor | None]]
"""From files to pixels and what is real of them."""


def caption_functions(
    model: ImageTextModel,
    tokenizer: WordPieceTokenizer,
    pictures: Pictures,
    files: tf.TensorSpec,
    decoding: DecodingConfig,
) -> dict[str, ServingFunction]:
    """``caption_sample`` and ``caption_beam``: K captions of each image, best first, as a request wants them.

    ``caption_sample`` takes ``seed: int32[B]``, and for the whole request the scalars ``temperature: float32[]``, ``top_p:
    float32[]`` and ``max_tokens: int32[]``; ``caption_beam`` the scalars ``length_penalty: float32[]``, ``min_tokens: int32[]``
    and ``max_tokens: int32[]``. Both give ``caption: string[B, K]`` and ``score: float32[B, K]``, the mean log-probability a
    token, ``-inf`` where there was no further caption to find. What is out of range is refused by the graph.

    Args:
        model: A model that captions.
        tokenizer: Its tokenizer.
        pictures: From files to what the model sees.
        files: The spec of ``image_bytes``.
        decoding: The recipe's section: it fixes K (`num_samples`, `beam_size`) and all else that is no input.

    Returns:
        The two signatures by name.
    """
    longest = checked_length(model, decoding.max_tokens)
    drawn = _fixed(decoding, "sample", "temperature", "top_p", "seeds", "max_tokens")
    searched = _fixed(decoding, "beam", "length_penalty", "min_tokens", "max_tokens")

    def told(output: DecodeOutput | BeamOutput, scores: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.reshape(output.token_ids, [-1, longest])
        return {"caption": tf.reshape(tokenizer.detokenize(rows), tf.shape(scores)), "score": scores}

    def caption_sample(
        image_bytes: tf.Tensor, seed: tf.Tensor, temperature: tf.Tensor, top_p: tf.Tensor, max_tokens: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        checks = [
            _check("seed", seed, tf.equal(tf.shape(seed)[0], tf.shape(image_bytes)[0]), "one for each image"),
            _check("temperature", temperature, (temperature > 0) & tf.math.is_finite(temperature), "a number above 0"),
            _check("top_p", top_p, (top_p > 0) & (top_p <= 1), "above 0, up to 1"),
            _check("max_tokens", max_tokens, (max_tokens >= 1) & (max_tokens <= longest), f"1 to {longest}"),
        ]
        with tf.control_dependencies(checks):
            seed, temperature, top_p, max_tokens = (tf.identity(x) for x in (seed, temperature, top_p, max_tokens))
        output = model.caption(
            *pictures(image_bytes),
            seeds=seed,
            temperature=temperature,
            top_p=top_p,
            limit=max_tokens,
            max_tokens=longest,
            **drawn,
        )
        return told(output, output.scores)

    def caption_beam(
        image_bytes: tf.Tensor, length_penalty: tf.Tensor, min_tokens: tf.Tensor, max_tokens: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        checks = [
            _check("length_penalty", length_penalty, tf.math.is_finite(length_penalty), "a number"),
            _check("max_tokens", max_tokens, (max_tokens >= 1) & (max_tokens <= longest), f"1 to {longest}"),
            _check("min_tokens", min_tokens, (min_tokens >= 0) & (min_tokens <= max_tokens), "0 to max_tokens"),
        ]
        with tf.control_dependencies(checks):
            length_penalty, min_tokens, max_tokens = (tf.identity(x) for x in (length_penalty, min_tokens, max_tokens))
        output = model.caption(
            *pictures(image_bytes),
            length_penalty=length_penalty,
            min_tokens=min_tokens,
            limit=max_tokens,
            max_tokens=longest,
            **searched,
        )
        return told(output, mean_scores(output, length_penalty))

    def scalar(name: str, dtype: tf.DType) -> tf.TensorSpec:
        return tf.TensorSpec([], dtype, name=name)

    seed = tf.TensorSpec(files.shape[:1], tf.int32, name="seed")
    most = scalar("max_tokens", tf.int32)
    return {
        "caption_sample": ServingFunction(
            caption_sample, [files, seed, scalar("temperature", tf.float32), scalar("top_p", tf.float32), most]
        ),
        "caption_beam": ServingFunction(
            caption_beam, [files, scalar("length_penalty", tf.float32), scalar("min_tokens", tf.int32), most]
        ),
    }


def _fixed(decoding: DecodingConfig, method: str, *inputs: str) -> dict[str, Any]:
    return {name: value for name, value in decoding.options(method).items() if name not in inputs}


def _check(name: str, value: tf.Tensor, fits: tf.Tensor, expected: str) -> tf.Operation:
    # NaN fits nothing, since all that is asked of it is false.
    return tf.debugging.Assert(fits, [f"{name}: expected {expected}", value])
