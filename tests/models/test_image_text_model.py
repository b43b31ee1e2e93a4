"""ImageTextModel: heads, masks, cached decoding, saving."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from factories import MAX_LENGTH, VOCABULARY_SIZE, randomized, tiny_batch, tiny_model
from gradients import value_and_gradients

from mmfusion.errors import ConfigError
from mmfusion.models import ContrastiveHead


@pytest.fixture(scope="module")
def model():
    return randomized(tiny_model())


def to_numpy(value):
    return keras.ops.convert_to_numpy(value)


def test_outputs_have_their_shapes(model):
    batch = tiny_batch(3)
    outputs = model(batch)
    shapes = {name: tuple(value.shape) for name, value in outputs.items()}
    assert shapes == {
        "image_embedding": (3, 8),
        "text_embedding": (3, 8),
        "match_logits": (3,),
        "caption_logits": (3, MAX_LENGTH, VOCABULARY_SIZE),
    }


def test_methods_agree_with_call(model):
    batch = tiny_batch(3)
    outputs = model(batch)
    np.testing.assert_allclose(to_numpy(model.encode_image(batch["image"])), to_numpy(outputs["image_embedding"]), atol=1e-6)
    text = model.encode_text(batch["token_ids"], batch["token_mask"])
    np.testing.assert_allclose(to_numpy(text), to_numpy(outputs["text_embedding"]), atol=1e-6)
    match = model.match(batch["image"], batch["token_ids"], batch["token_mask"])
    np.testing.assert_allclose(to_numpy(match), to_numpy(outputs["match_logits"]), atol=1e-6)


def test_padding_never_changes_a_result(model):
    batch = tiny_batch(4)
    other = dict(batch, token_ids=np.where(batch["token_mask"], batch["token_ids"], 17).astype("int32"))
    first, second = model(batch), model(other)
    for name in ("text_embedding", "match_logits"):
        np.testing.assert_array_equal(to_numpy(first[name]), to_numpy(second[name]))
    real = batch["token_mask"]
    np.testing.assert_array_equal(to_numpy(first["caption_logits"])[real], to_numpy(second["caption_logits"])[real])


def test_captioning_sees_nothing_of_the_future(model):
    batch = tiny_batch(2)
    full = np.ones_like(batch["token_mask"])
    changed = batch["token_ids"].copy()
    changed[:, 4:] = 9
    first = to_numpy(model(dict(batch, token_mask=full))["caption_logits"])
    second = to_numpy(model(dict(batch, token_mask=full, token_ids=changed))["caption_logits"])
    np.testing.assert_array_equal(first[:, :4], second[:, :4])
    assert np.abs(first[:, 4:] - second[:, 4:]).max() > 1e-3


def test_cached_decoding_equals_uncached_rollout(model):
    images = tiny_batch(3)["image"]
    output = model.caption(images, max_tokens=MAX_LENGTH - 1)
    patches = model.image_encoder(images)
    ids = np.full((3, MAX_LENGTH), 0, "int32")
    ids[:, 0] = 2
    finished = np.zeros(3, bool)
    for step in range(MAX_LENGTH - 1):
        logits = to_numpy(model.caption_logits(patches, ids[:, : step + 1]))[:, -1].copy()
        logits[:, [0, 2]] = -np.inf  # padding and the start token are never written
        chosen = np.where(finished, 0, logits.argmax(-1))
        ids[:, step + 1] = chosen
        finished |= chosen == 3
    np.testing.assert_array_equal(to_numpy(output.token_ids), ids[:, 1:])


def test_beams_are_at_least_as_likely_as_greedy(model):
    images = tiny_batch(3)["image"]
    greedy = model.caption(images)
    beams = model.caption(images, beam_size=4, length_penalty=1.0)
    assert tuple(beams.token_ids.shape) == (3, 4, MAX_LENGTH - 1)
    assert (to_numpy(beams.scores)[:, 0] >= to_numpy(greedy.scores) - 1e-5).all()


def test_attention_maps_sum_to_one_and_have_the_grid(model):
    batch = tiny_batch(2)
    maps = to_numpy(model.attend(batch["image"], batch["token_ids"], batch["token_mask"]))
    assert maps.shape == (2, 2, 2, MAX_LENGTH, 2, 3)
    np.testing.assert_allclose(maps.sum((-1, -2)), 1.0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_saved_model_comes_back_the_same(tmp_path, dtype):
    model = randomized(tiny_model(dtype))
    batch = tiny_batch(3)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [w.name for w in loaded.weights] == [w.name for w in model.weights]
    for name, value in model(batch).items():
        np.testing.assert_array_equal(
            to_numpy(keras.ops.cast(value, "float32")), to_numpy(keras.ops.cast(loaded(batch)[name], "float32"))
        )


@pytest.mark.parametrize("heads", [("contrastive",), ("matching",), ("captioning",), ("contrastive", "captioning")])
def test_heads_can_be_left_out(heads):
    model = tiny_model(heads=heads)
    assert model.heads == heads
    batch = tiny_batch(2)
    model(batch)
    if "matching" not in heads:
        with pytest.raises(ConfigError, match="no matching head"):
            model.match(batch["image"], batch["token_ids"])


def test_impossible_models_are_refused_when_built():
    with pytest.raises(ConfigError, match="at least one head"):
        tiny_model(heads=())
    model = tiny_model()
    with pytest.raises(ConfigError, match="a fusion"):
        type(model)(image_encoder=model.image_encoder, text_encoder=model.text_encoder, matching_head=model.matching_head)
    with pytest.raises(ConfigError, match="length of a caption"):
        model.caption(tiny_batch(1)["image"], max_tokens=MAX_LENGTH)


def test_images_of_another_size_are_refused(model):
    with pytest.raises(ConfigError, match="another size"):
        model.encode_image(np.zeros((1, 32, 32, 3), "float32"))


def test_temperature_is_capped_and_learned(model):
    head = model.contrastive_head
    before = head.log_scale.numpy()
    head.log_scale.assign(50.0)
    assert float(head.scale) == head.max_scale
    head.log_scale.assign(before)
    assert any("log_scale" in weight.path for weight in model.trainable_weights)


@pytest.mark.parametrize("start", [math.log(100.0), 7.0, 50.0])
def test_a_temperature_at_its_cap_learns_back_and_goes_no_further(start):
    head = ContrastiveHead(embedding_dim=4)
    head.build((None, None, 3), (None, None, 3))
    head.log_scale.assign(start)
    value, (_, gradient) = value_and_gradients(lambda x: x * head.scale, [np.float32(2.0)], [head.log_scale])
    assert value <= 200.0 and gradient == pytest.approx(200.0)
    optimizer, found = keras.optimizers.SGD(0.01), []
    for direction in (-1.0, -1.0, 1.0):
        optimizer.apply([keras.ops.convert_to_tensor(np.float32(direction * float(head.scale)))], [head.log_scale])
        found.append(float(head.scale))
        assert found[-1] <= head.max_scale
    # As steep as at the cap: e to the power of minus one.
    assert found[:2] == pytest.approx([100.0, 100.0]) and found[2] == pytest.approx(100.0 / math.e, rel=1e-4)


def test_impossible_temperatures_are_refused():
    with pytest.raises(ConfigError, match=r"impossible max_scale \[a\]: expected more than 0, found 0"):
        ContrastiveHead(embedding_dim=4, max_scale=0.0, name="a")
    with pytest.raises(ConfigError, match="impossible initial_temperature"):
        ContrastiveHead(embedding_dim=4, initial_temperature=-1.0)


def test_special_tokens_are_never_written():
    model = randomized(tiny_model(), scale=0.6)
    images = tiny_batch(4)["image"]
    written = {int(token) for token in to_numpy(model.caption(images, min_tokens=MAX_LENGTH - 1).token_ids).ravel()}
    model.captioning_head.forbidden_ids = tuple(written)
    for beam_size in (1, 3):
        found = to_numpy(model.caption(images, min_tokens=MAX_LENGTH - 1, beam_size=beam_size).token_ids)
        assert not np.isin(found, [*written, 2]).any()
    copy = type(model.captioning_head).from_config(model.captioning_head.get_config())
    assert copy.forbidden_ids == tuple(written)


@pytest.mark.parametrize(("heads", "causal"), [(("captioning",), True), (("matching", "captioning"), False)])
def test_attention_is_drawn_as_the_model_reads(heads, causal):
    model = randomized(tiny_model(heads=heads))
    batch = tiny_batch(2)
    found = to_numpy(model.attend(batch["image"], batch["token_ids"], batch["token_mask"]))
    same, other = (
        to_numpy(model.attend(batch["image"], batch["token_ids"], batch["token_mask"], causal=way))
        for way in (causal, not causal)
    )
    np.testing.assert_array_equal(found, same)
    assert np.abs(found - other).max() > 1e-4


def test_keras_own_export_says_how_it_is_done(model, tmp_path):
    with pytest.raises(ConfigError, match=r"export_model.*mmfusion export RUN"):
        model.export(tmp_path / "export")
