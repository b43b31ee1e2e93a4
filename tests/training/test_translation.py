"""A picture and a sentence into another language: from a recipe to answers."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from mmfusion.cli.translate import translate
from mmfusion.config import recipe_from_dict
from mmfusion.errors import ConfigError, ExportError
from mmfusion.evaluation.evaluator import Evaluator
from mmfusion.export import Predictor
from mmfusion.export.example_pictures import example_image
from mmfusion.export.serving_function import as_tf_function
from mmfusion.export.serving_functions import serving_functions
from mmfusion.training import load_run, train
from mmfusion.training.experiment import prepare_source

TOWER = {"dim": 32, "depth": 1, "num_heads": 2}
CONTENT = {
    "name": "translation",
    "data": {"source": "builtin", "source_language": "en", "languages": ["de"], "image_size": 24, "limit": 128},
    "text": {"vocabulary_size": 600, "max_tokens": 14},
    "translation": {"depth": 1, "fusion": {"style": "gated", "depth": 1, "num_heads": 2}},
    "model": {"heads": ["captioning"], "image_encoder": {**TOWER, "patch_size": 12}, "text_encoder": TOWER},
    "fusion": {"depth": 1, "num_heads": 2},
    "objective": {"contrastive": None, "matching": None},
    "train": {
        "epochs": 2, "batch_size": 32, "learning_rate": 1e-2, "validation_images": 16, "monitor": "val_loss",
        "tensorboard": False,
    },
}  # fmt: skip


@pytest.mark.slow
def test_from_a_recipe_to_answers(tmp_path):
    recipe = recipe_from_dict(CONTENT)
    train(recipe, tmp_path / "run")
    run = load_run(tmp_path / "run")
    result = Evaluator(
        run.model, source=prepare_source(recipe), split="val", tokenizer=run.tokenizer, transform=run.transform, limit=8
    ).captions()
    assert len(result.captions) == 8 and "cider_d" in result.metrics
    functions = serving_functions(run.model, run.tokenizer, run.transform)
    assert list(functions) == ["translate"]
    predictor = Predictor({name: as_tf_function(function) for name, function in functions.items()}, name="translation")
    answers = predictor.translate([example_image(), example_image(48)], ["red heart", "dog face"], "de")
    assert len(answers) == 2 and all(answer.score <= 0 for answer in answers)
    # The source changes what is written, or how surely: it is read.
    same, other = (predictor.translate([example_image()], [text], "de")[0].score for text in ("red heart", "sleeping face"))
    assert same == pytest.approx(answers[0].score, abs=1e-5) and other != pytest.approx(same, abs=1e-5)
    with pytest.raises(ConfigError, match=r"not learned to write this language \[--to\]: expected .*de.*, found xx"):
        translate(tmp_path / "run", tmp_path / "unread.png", "red heart", ["de", "xx"])


def test_gradients_reach_the_reader_of_the_source():
    from mmfusion.models import build_model

    recipe = recipe_from_dict(CONTENT)
    model = build_model(recipe, vocabulary_size=30, start_id=2, end_id=3, pad_id=0)
    source = {"pixels": tf.random.normal([2, 24, 24, 3], seed=1), "source_ids": tf.constant([[2, 7, 8, 3], [2, 9, 3, 0]])}
    with tf.GradientTape() as tape:
        patches, mask = model.encode_patches(source, source["source_ids"] > 0)
        logits = model.caption_logits(patches, tf.constant([[2, 5, 6], [2, 4, 3]]), patch_mask=mask)
        loss = tf.reduce_sum(logits**2)
    weights = {variable.path: variable.value for variable in model.image_encoder.text_encoder.trainable_weights}
    embedding = next(
        value for path, value in weights.items() if path.endswith("token_embedding/embedding") or "embeddings" in path
    )
    assert float(tf.reduce_max(tf.abs(tf.convert_to_tensor(tape.gradient(loss, embedding))))) > 0
    # Written eagerly, three examples are filled up to four: the same words as in a graph of three.
    three = {name: tf.concat([value, value[:1]], axis=0) for name, value in source.items()}
    mask = three["source_ids"] > 0
    written = tf.function(lambda images, mask: model.caption(images, mask, max_tokens=3))(three, mask)
    np.testing.assert_array_equal(model.caption(three, mask, max_tokens=3).token_ids, written.token_ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"translation": None}, r"data\.source_language.*expected none.*translation is none"),
        ({"data": {**CONTENT["data"], "source_language": None}}, r"data\.source_language.*expected a language, found none"),
        ({"model": {**CONTENT["model"], "heads": ["captioning", "matching"]}}, r"model\.heads.*expected \[captioning\] alone"),
        ({"data": {**CONTENT["data"], "source_language": "de"}}, r"languages.*another one than"),
        ({"data": {**CONTENT["data"], "source": "tfds", "name": "x"}}, r"source_language.*expected none for source tfds"),
    ],
)
def test_what_cannot_go_together(change, message):
    with pytest.raises(ConfigError, match=message):
        recipe_from_dict({**CONTENT, **change})


def test_it_is_not_asked_where_its_words_look():
    from mmfusion.models import build_model

    model = build_model(recipe_from_dict(CONTENT), vocabulary_size=30, start_id=2, end_id=3, pad_id=0)
    source = {"pixels": tf.zeros([1, 24, 24, 3]), "source_ids": tf.constant([[2, 7, 8, 3]])}
    with pytest.raises(
        ConfigError, match="more than a picture.*expected 4 tokens, a patch each, found 8 from SourceImageEncoder"
    ):
        model.attend(source, tf.constant([[2, 9, 3]]))
    predictor = Predictor({"translate": dict}, name="RUN")
    with pytest.raises(ExportError, match=r"translates looks for no phrases \[RUN\]"):
        predictor.localise("unread.png", "red heart")
    with pytest.raises(
        ExportError, match=r"single pictures \[RUN\]: expected a model that sees one at a time, found one that sees 4"
    ):
        Predictor({}, name="RUN", frames=4).localise("unread.gif", "red heart")
