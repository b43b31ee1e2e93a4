"""What is particular to `GatedFusion`: gates that start closed, and a language part that can stay as it is."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from factories import randomized
from gradients import to_numpy, value_and_gradients

from mmfusion.fusion import GatedFusion

B, T, P, D, DI = 2, 4, 5, 8, 6
RANDOM = np.random.default_rng(0)
TEXT, IMAGE = (RANDOM.normal(size=shape).astype("float32") for shape in ((B, T, D), (B, P, DI)))
TEXT_MASK = np.array([[True] * T, [True] * 3 + [False]])


def made(**options):
    fusion = GatedFusion(dim=D, image_dim=DI, depth=2, num_heads=2, **options)
    fusion.build()
    return fusion


def gates(fusion):
    return [gate for block in fusion.gated_blocks for gate in (block.attention_gate, block.feed_forward_gate)]


def randomized_but_closed(fusion):
    randomized(fusion)
    for gate in gates(fusion):
        gate.assign(0.0)
    return fusion


def test_is_the_identity_at_first():
    fusion = randomized_but_closed(made(self_attention=False))
    np.testing.assert_array_equal(to_numpy(fusion(TEXT, IMAGE).text), TEXT)
    assert [float(gate) for gate in gates(made())] == [0.0] * 4


@pytest.mark.parametrize("causal", [False, True])
def test_is_the_language_part_alone_at_first(causal):
    fusion = randomized_but_closed(made())
    tokens = keras.ops.convert_to_tensor(TEXT)
    for block in fusion.language_blocks:
        tokens = block(tokens, mask=TEXT_MASK, causal=causal)
    found = fusion(TEXT, IMAGE, text_mask=TEXT_MASK, causal=causal).text
    np.testing.assert_array_equal(to_numpy(found)[TEXT_MASK], to_numpy(fusion.language_norm(tokens))[TEXT_MASK])


def test_only_the_gates_learn_at_first():
    fusion = randomized_but_closed(made(self_attention=False))
    weights = fusion.trainable_weights
    _, (_, of_image, *gradients) = value_and_gradients(
        lambda text, image: keras.ops.sum(fusion(text, image).text ** 3), [TEXT, IMAGE], weights
    )
    moving = {weight.path for weight, gradient in zip(weights, gradients, strict=True) if np.abs(gradient).max() > 1e-6}
    assert moving == {gate.path for gate in gates(fusion)}
    assert not of_image.any()


def test_language_frozen_by_name_stays_as_it_is():
    fusion = randomized(made())
    for layer in fusion.language_blocks + [fusion.language_norm]:
        assert all("language_" in weight.path for weight in layer.weights)
    for weight in fusion.weights:
        weight.trainable = "language_" not in weight.path
    weights = fusion.trainable_weights
    assert weights and not any("language_" in weight.path for weight in weights)
    before = {weight.path: to_numpy(weight) for weight in fusion.weights}
    _, (_, _, *gradients) = value_and_gradients(
        lambda text, image: keras.ops.sum(fusion(text, image).text ** 3), [TEXT, IMAGE], weights
    )
    keras.optimizers.SGD(0.1).apply(gradients, weights)
    moved = {weight.path for weight in fusion.weights if (to_numpy(weight) != before[weight.path]).any()}
    assert moved == {weight.path for weight in weights if "key/bias" not in weight.path} | {
        path for path in moved if "key/bias" in path
    }
    assert not any("language_" in path for path in moved)


def test_scores_of_a_step_are_those_of_the_pass():
    fusion = randomized(made(self_attention=False))
    output = fusion(TEXT, IMAGE, causal=True, return_scores=True)
    step = fusion(TEXT[:, :1], cache=fusion.init_cache(B, T, IMAGE), causal=True, return_scores=True)
    np.testing.assert_allclose(to_numpy(step.scores), to_numpy(output.scores)[..., :1, :], atol=1e-6)
    np.testing.assert_allclose(to_numpy(step.text), to_numpy(output.text)[:, :1], atol=1e-5)


def test_what_the_gates_let_through_grows_with_them():
    fusion = randomized_but_closed(made(self_attention=False))
    changes = []
    for value in (0.1, 1.0, 10.0, 20.0):
        for gate in gates(fusion):
            gate.assign(value)
        changes.append(np.abs(to_numpy(fusion(TEXT, IMAGE).text) - TEXT).mean())
    # tanh(10) and tanh(20) are both 1.
    assert changes[0] < changes[1] / 2 < changes[2] / 2 and abs(changes[3] / changes[2] - 1) < 1e-5
