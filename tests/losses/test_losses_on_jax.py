"""The losses give on JAX what they give on TensorFlow."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from mmfusion.losses import (
    attention_coverage,
    captioning_loss,
    mask_tokens,
    masked_language_loss,
    matching_loss,
    sample_hard_negatives,
    sigmoid_contrastive,
    softmax_contrastive,
)


def compute() -> dict[str, list]:
    """All losses of one batch, compiled where the backend is JAX."""
    generator = np.random.default_rng(0)
    image, text = generator.normal(size=(2, 6, 8)).astype("float32")
    ids = np.array([1, 2, 1, 3, 2, 2])
    logits = generator.normal(size=(6, 4, 9)).astype("float32")
    targets = generator.integers(9, size=(6, 4))
    mask = generator.uniform(size=(6, 4)) < 0.7

    def losses(image, text, logits, offset):
        shared = {"image_id": ids[2:4], "all_text": text, "all_image_id": ids, "offset": offset}
        caption = captioning_loss(logits, targets, mask, label_smoothing=0.1)
        return {
            "softmax": softmax_contrastive(
                image[2:4], text[2:4], 0.5, all_image=image, duplicates="ignore", label_smoothing=0.1, **shared
            ),
            "sigmoid": sigmoid_contrastive(image[2:4], text[2:4], 0.5, -1.0, **shared),
            "matching": matching_loss(logits[:, 0, 0], mask[:, 0], mask[:, 1]),
            "captioning": caption.loss_sum,
            "tokens": caption.tokens,
            "masked": masked_language_loss(logits, targets, mask, teacher_logits=-logits, alpha=0.4, z_loss=0.1).loss_sum,
            "coverage": attention_coverage(logits[:, None, None], mask),
            "taught": softmax_contrastive(
                image[2:4],
                text[2:4],
                0.5,
                all_image=image,
                teacher_image=text[2:4],
                teacher_text=image[2:4],
                alpha=0.4,
                valid=ids < 3,
                z_loss=0.1,
                **shared,
            ),
        }

    def negatives(similarity):
        drawn = sample_hard_negatives(similarity, ids, seed=3)
        hidden = mask_tokens(targets, mask, vocabulary_size=9, mask_id=4, special_ids=(0,), rate=0.5, seed=3)
        return {"images": drawn.image_index, "texts": drawn.text_index, "hidden": hidden.chosen}

    if keras.backend.backend() == "jax":
        import jax

        losses, negatives = jax.jit(losses), jax.jit(negatives)
    results = losses(image, text, logits, np.int32(2)) | negatives(np.zeros((6, 6), "float32"))
    return {name: np.asarray(value).tolist() for name, value in results.items()} | {"ids": ids.tolist()}


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs jax")
def test_equals_tensorflow() -> None:
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    answer = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    on_jax, here = json.loads(answer.stdout), compute()
    for name in ("softmax", "sigmoid", "matching", "captioning", "tokens", "masked", "coverage", "taught"):
        np.testing.assert_allclose(on_jax[name], here[name], rtol=1e-4, atol=1e-6)
    for hidden in (np.array(on_jax["hidden"]), np.array(here["hidden"])):
        assert hidden.any(axis=1).all()
    ids = np.array(here["ids"])
    for name in ("images", "texts"):
        # The two draw other numbers; both draw other images.
        assert (ids[on_jax[name]] != ids).all() and (ids[here[name]] != ids).all()


if __name__ == "__main__":
    print(json.dumps(compute()))
