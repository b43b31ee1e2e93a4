"""The likelihood of captions, against sums made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from factories import randomized, tiny_model

from mmfusion.errors import DataError
from mmfusion.evaluation.caption_likelihood import caption_loss, unigram_loss
from mmfusion.text import WordPieceTokenizer

WORDS = ("a", "dog", "cat", "runs", "sits", "red", "on", "sand")


@pytest.fixture
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer(vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS], max_length=6)


def test_every_caption_of_every_image_counts_once(tokenizer):
    model = randomized(tiny_model())
    images = np.random.default_rng(0).normal(size=(3, *model.image_encoder.image_size, 3)).astype("float32")
    captions = {7: ["a dog runs", "red dog"], 8: ["a cat sits on sand"], 9: ["cat", "a cat", "a red cat"]}
    batches = [
        {"image": tf.constant(images[:2]), "image_id": tf.constant([7, 8])},
        {"image": tf.constant(images[2:]), "image_id": tf.constant([9])},
    ]
    total = count = 0.0
    for row, texts in enumerate(captions.values()):
        for text in texts:
            tokens = tokenizer(tf.constant([text]))
            ids, mask = tokens.token_ids.numpy(), tokens.token_mask.numpy()
            patches = model.image_encoder(images[row : row + 1])
            logits = model.caption_logits(patches, ids[:, :-1], mask[:, :-1]).numpy()[0].astype("float64")
            log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            for place in range(1, mask.sum()):
                total -= log_probability[place - 1, ids[0, place]]
                count += 1
    np.testing.assert_allclose(caption_loss(model, tokenizer, batches, captions), total / count, rtol=1e-5)


def test_unigram_is_the_smoothed_frequency(tokenizer):
    # a 2, dog 1, runs 1, end 2 of 6, one more for each of the 12 words.
    expected = -(math.log(3 / 18) + math.log(1 / 18) + math.log(3 / 18)) / 3
    assert unigram_loss(tokenizer, ["a dog runs", "a"], ["a cat"]) == pytest.approx(expected)


def test_nothing_to_score_is_said(tokenizer):
    with pytest.raises(DataError, match="no caption to score"):
        unigram_loss(tokenizer, ["a"], [])
    with pytest.raises(DataError, match="no caption to score"):
        caption_loss(tiny_model(), tokenizer, [], {})
