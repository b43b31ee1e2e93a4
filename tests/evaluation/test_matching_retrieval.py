"""Retrieval by every pair, and hidden words: against the model itself and against ln V."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from factories import IMAGE_SIZE, MAX_LENGTH, randomized, tiny_batch, tiny_model

from mmfusion.data import ImageTransform, Source
from mmfusion.data.example import Example, ImageReference
from mmfusion.evaluation.caption_likelihood import masked_language_figures
from mmfusion.evaluation.evaluator import Evaluator
from mmfusion.evaluation.matching_retrieval import balanced_accuracy, retrieval_by_matching
from mmfusion.text import WordPieceTokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxy"]


@pytest.fixture(scope="module")
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer(vocabulary=WORDS, max_length=MAX_LENGTH)


def test_every_pair_is_scored_as_the_model_scores_it(tokenizer, tmp_path):
    model = randomized(tiny_model(heads=("matching",)))
    random = np.random.default_rng(0)
    examples = []
    for number, captions in enumerate((("a b", "c"), ("d e f",), ("g",))):
        path = tmp_path / f"{number}.png"
        path.write_bytes(tf.io.encode_png(tf.constant(random.integers(0, 255, (*IMAGE_SIZE, 3)), tf.uint8)).numpy())
        examples.append(Example(ImageReference(str(path)), captions, number, path.name))
    transform = ImageTransform(size=IMAGE_SIZE)
    source = Source(name="letters", splits={"val": examples}, bad_rows=[])
    evaluator = Evaluator(model, source=source, split="val", tokenizer=tokenizer, transform=transform, limit=2)
    result = retrieval_by_matching(evaluator, batch_size=4)
    assert result.scores.shape == (2, 3)
    images = tf.stack([transform(tf.constant(example.image.read())) for example in examples[:2]])
    texts = tokenizer(["a b", "c", "d e f"])
    for row in range(2):
        for column in range(3):
            image, text = slice(row, row + 1), slice(column, column + 1)
            expected = model.match(images[image], texts.token_ids[text], texts.token_mask[text])
            assert float(result.scores[row, column]) == pytest.approx(float(expected[0]), abs=5e-3)  # tokens are kept in float16
    right = np.array([[True, True, False], [False, False, True]])
    assert result.metrics["matching_accuracy"] == balanced_accuracy(result.scores, right)
    assert result.metrics["i2t_r10"] == 100.0


def test_balanced_accuracy_of_chance_is_a_half():
    right = np.eye(5, dtype=bool)
    assert balanced_accuracy(np.full((5, 5), 1.0), right) == balanced_accuracy(np.full((5, 5), -1.0), right) == 0.5
    assert balanced_accuracy(np.where(right, 1.0, -1.0), right) == 1.0
    assert balanced_accuracy(np.array([[2.0]]), np.array([[True]])) == 1.0


def test_hidden_words_cost_ln_v_where_all_are_alike(tokenizer):
    model, batch = randomized(tiny_model(heads=("masked_language",))), tiny_batch(3)
    model.text_encoder.token_embedding.embedding.assign(np.zeros((30, 12)))
    model.text_encoder.token_embedding.output_bias.assign(np.zeros(30))
    batches = [{"image": tf.constant(batch["image"]), "image_id": tf.constant([7, 8, 9])}]
    captions = {7: ["a b c", "d"], 8: ["e f"], 9: ["g h i j"]}
    figures = masked_language_figures(model, tokenizer, batches, captions)
    assert figures["masked_language_loss"] == pytest.approx(math.log(30), abs=1e-5)
    assert figures["masked_language_accuracy"] == 0.0
    assert figures == masked_language_figures(model, tokenizer, batches, captions)
