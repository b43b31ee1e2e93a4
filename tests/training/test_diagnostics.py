"""Gradients by depth and shares of modalities: known truths; the callback; its pictures and its place in a training."""

from __future__ import annotations

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from checkpoint_layouts import BLIP_CONFIG, COCA_CONFIG, blip_retrieval, coca
from factories import randomized, tiny_batch, tiny_model

from mmfusion.convert import convert_blip_retrieval, convert_open_clip_coca
from mmfusion.evaluation.diagnostic_figures import draw_diagnostics, read_diagnostics
from mmfusion.evaluation.figures import draw_learning_curves
from mmfusion.layers import LayerScale, ModalityDropout
from mmfusion.training.callbacks import Diagnostics, JsonLinesLog
from mmfusion.training.diagnostics import (
    GradientProbe,
    ImageTextModalityProbe,
    ModalityProbe,
    depth_groups,
    share_by_ablation,
    share_by_gradient,
)


def stack(kind: str, depth: int = 24) -> keras.Model:
    """A deep stack whose gradient is known to vanish, to explode, or to arrive."""
    inputs = tokens = keras.Input((4, 16))
    gain = {"plain, large": 6.0, "post-norm, layer scale": 1.0}.get(kind, 0.25)
    for index in range(depth):
        initializer = keras.initializers.VarianceScaling(gain, mode="fan_in", distribution="normal", seed=index)
        # The sine of large numbers stays bounded where the gradient grows: in a linear stack activations would grow instead.
        activation = keras.ops.sin if kind == "plain, large" else "tanh"
        dense = keras.layers.Dense(16, activation=activation, kernel_initializer=initializer, name=f"block_{index}")
        branch = dense(tokens)
        if kind.startswith("plain"):
            tokens = branch
            continue
        if "layer scale" in kind:
            branch = LayerScale(initial=1e-2)(branch)
        tokens = tokens + branch
        if kind.startswith("post-norm"):
            tokens = keras.layers.LayerNormalization()(tokens)
    return keras.Model(inputs, tokens)


@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        ("plain, small", "vanishing"),
        ("plain, large", "exploding"),
        ("residual, layer scale", "ok"),
        ("post-norm, layer scale", "ok"),
    ],
)
def test_gradients_by_depth(kind, flag):
    model = stack(kind)
    inputs = np.random.default_rng(0).normal(size=(4, 4, 16)).astype("float32")
    target = np.random.default_rng(1).normal(size=(4, 4, 16)).astype("float32")
    report = GradientProbe(model, lambda: tf.reduce_mean((model(inputs) - target) ** 2))()["block"]
    assert report["blocks"] == [str(index) for index in range(24)]
    assert report["flag"] == flag, (report["gradient"][0], report["gradient"][-1])


def test_norms_are_those_of_numpy():
    model = stack("residual", depth=3)
    inputs = np.random.default_rng(0).normal(size=(2, 4, 16)).astype("float32")
    probe = GradientProbe(model, lambda: tf.reduce_sum(model(inputs)))
    before = [weight.numpy() for weight in model.trainable_weights]
    probe.before_step()
    for weight in model.trainable_weights:
        weight.assign(weight * 1.01 + 0.001)
    report = probe()["block"]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(inputs))
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    for block in range(3):
        places = [2 * block, 2 * block + 1]

        def norm(values, places=places):
            return math.sqrt(sum(float(np.sum(np.square(values[place], dtype="float64"))) for place in places))

        after = [weight.numpy() for weight in model.trainable_weights]
        assert report["gradient"][block] == pytest.approx(norm([np.asarray(g) for g in gradients]), rel=1e-5)
        assert report["weight"][block] == pytest.approx(norm(after), rel=1e-5)
        moved = norm([b - a for a, b in zip(before, after, strict=True)])
        assert report["update"][block] == pytest.approx(moved / norm(after), rel=1e-4)
    assert probe()["block"]["update"] is None


def test_under_a_strategy_too(two_devices):
    reports = []
    for strategy in (tf.distribute.get_strategy(), two_devices):
        with strategy.scope():
            model = stack("residual, layer scale", depth=2)
        probe = GradientProbe(model, lambda model=model: tf.reduce_sum(model(np.ones((2, 4, 16), "float32"))))
        reports.append(probe()["block"]["gradient"])
    assert min(reports[0]) > 0.0
    np.testing.assert_allclose(reports[1], reports[0], rtol=1e-5)


def test_stacks_of_a_model():
    model = tiny_model(name="model")
    groups = depth_groups([weight.path.removeprefix("model/") for weight in model.trainable_weights])
    assert {stack: list(blocks) for stack, blocks in groups.items()} == {
        f"{part}/block": [f"{part}/block_0", f"{part}/block_1"] for part in ("image_encoder", "text_encoder", "fusion")
    }


def test_shares_of_a_sum():
    random = np.random.default_rng(0)
    streams = {name: tf.constant(random.normal(size=(200, n, 2)), tf.float32) for name, n in (("image", 6), ("text", 3))}
    masks = {"text": tf.constant(np.arange(3) < random.integers(1, 4, 200)[:, None])}

    def output(s):
        text = tf.where(masks["text"][..., None], s["text"], 0.0)
        return tf.reduce_sum(s["image"], axis=(1, 2)) + 2.0 * tf.reduce_sum(text, axis=(1, 2))

    # By gradient: tokens with weight 1 and 2, six and two on average. By ablation: independent sums of normals.
    shares = share_by_gradient(output, streams, masks)
    assert shares["image"] == pytest.approx(6 / (6 + 2 * 2), abs=0.03)
    shares = share_by_ablation(output, streams, masks)
    sizes = math.sqrt(6), 2 * (1 + math.sqrt(2) + math.sqrt(3)) / 3
    assert shares["image"] == pytest.approx(sizes[0] / sum(sizes), abs=0.05)
    nothing = share_by_ablation(lambda s: tf.zeros(3), streams)
    assert math.isnan(nothing["image"]) and math.isnan(share_by_gradient(lambda s: tf.zeros(3), streams)["text"])


def test_what_stands_behind_a_mask_has_no_share():
    streams = {"image": tf.ones((2, 3, 4)), "text": tf.constant(np.random.default_rng(0).normal(size=(2, 3, 4)), tf.float32)}
    masks = {"text": tf.constant([[True, False, False]] * 2)}
    spoilt = {**streams, "text": tf.where(masks["text"][..., None], streams["text"], 1e6)}

    def output(s):
        return tf.reduce_sum(s["image"], axis=(1, 2)) + tf.reduce_sum(s["text"][:, 0], axis=-1)

    for share in (share_by_ablation, share_by_gradient):
        assert share(output, spoilt, masks) == share(output, streams, masks)


def test_a_model_that_learned_from_the_text_alone_has_no_share_of_the_image():
    """And modality dropout teaches it to look: where the text is hidden, the image alone has to answer."""
    random = np.random.default_rng(0)
    sign = random.choice([-1.0, 1.0], size=(128, 1, 1))
    streams = {
        "image": tf.constant(sign + 0.3 * random.normal(size=(128, 3, 4)), tf.float32),
        # The text says the same ten times as loudly.
        "text": tf.constant(10 * sign + random.normal(size=(128, 2, 4)), tf.float32),
    }
    shares = []
    for cure in (None, ModalityDropout(rate=0.8, text_share=1.0, seed=1)):
        weights = {name: tf.Variable(tf.zeros((4, 1))) for name in streams}

        def answer(s, cure=None, weights=weights):
            masks = {"text": None, "image": None}
            if cure is not None:
                masks["text"], masks["image"] = cure(s["text"], s["image"], training=True)
            kept = {name: x if masks[name] is None else tf.where(masks[name][..., None], x, 0.0) for name, x in s.items()}
            return tf.add_n([tf.matmul(tf.reduce_mean(x, axis=1), weights[name])[:, 0] for name, x in kept.items()])

        for _ in range(100):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.nn.softplus(-sign[:, 0, 0] * answer(streams, cure)))
            for name, gradient in tape.gradient(loss, weights).items():
                weights[name].assign_sub(0.05 * gradient)
        shares.append(ModalityProbe({"answer": answer}, streams)()["answer"])
    alone, cured = shares
    assert alone["ablation"]["image"] < 0.02 and alone["gradient"]["image"] < 0.02
    assert min(cured["ablation"]["image"], cured["gradient"]["image"]) > 5 * alone["ablation"]["image"]


def test_heads_of_an_image_text_model():
    model, batch = randomized(tiny_model(name="model")), {k: tf.constant(v) for k, v in tiny_batch(6).items()}
    report = ImageTextModalityProbe(model, batch)()
    assert set(report) == {"contrastive", "matching", "captioning"}
    for shares in report.values():
        for method in ("ablation", "gradient"):
            assert 0.0 < shares[method]["image"] < 1.0
            assert sum(shares[method].values()) == pytest.approx(1.0, abs=1e-6)
    # A fusion that does not look at the image: what comes out is the text's alone.
    for block in model.fusion.blocks:
        block.cross.output_projection.kernel.assign(tf.zeros_like(block.cross.output_projection.kernel))
    report = ImageTextModalityProbe(model, batch)()
    for head in ("matching", "captioning"):
        assert report[head]["ablation"]["image"] == 0.0 and report[head]["gradient"]["image"] == 0.0
    assert report["contrastive"]["ablation"]["image"] > 0.1
    assert "call" not in model.text_encoder.__dict__


@pytest.mark.parametrize("heads", [("masked_language",), ("contrastive", "masked_language")])
def test_a_model_of_hidden_words(heads):
    model, batch = randomized(tiny_model(name="model", heads=heads)), {k: tf.constant(v) for k, v in tiny_batch(6).items()}
    probe = ImageTextModalityProbe(model, batch)
    report = probe()
    assert set(report) == set(heads) and probe() == report
    for method in ("ablation", "gradient"):
        assert 0.0 < report["masked_language"][method]["image"] < 1.0
    for block in model.fusion.blocks:
        block.cross.output_projection.kernel.assign(tf.zeros_like(block.cross.output_projection.kernel))
    for share in probe()["masked_language"].values():
        assert share == {"image": 0.0, "text": 1.0}


def test_text_that_is_contrasted_left_to_right_has_a_share_too():
    model = randomized(tiny_model(name="model", heads=("contrastive",), causal_text=True))
    report = ImageTextModalityProbe(model, {k: tf.constant(v) for k, v in tiny_batch(6).items()})()
    assert min(report["contrastive"]["ablation"]["text"], report["contrastive"]["gradient"]["text"]) > 0.1


def look(epoch: int, random: np.random.Generator) -> dict:
    def heads(layers, count):
        return {
            "layers": [f"block_{i}" for i in range(layers)],
            **{name: random.uniform(size=(layers, count)).tolist() for name in ("entropy", "rank", "stable_rank")},
        }

    blocks = {"blocks": ["0", "1", "2"], "gradient": [1e-4, 1e-2, 1.0], "weight": [9.0, 8.0, 7.0], "flag": "vanishing"}
    update = None if epoch == 0 else [1e-3, 2e-3, 0.0]
    share = {"ablation": {"image": 0.3, "text": 0.7}, "gradient": {"image": None, "text": None}}
    return {
        "attention": {"image encoder": heads(4, 8), "fusion, text to image": heads(2, 4)},
        "gradients": {"image_encoder/block": {**blocks, "update": update}},
        "modality": {"matching": share, "captioning": share},
    }  # fmt: skip


def test_pictures(tmp_path):
    log, random = tmp_path / "train.jsonl", np.random.default_rng(0)
    rows = [{"kind": "epoch", "step": 10, "epoch": 0, "loss": 2.0}]
    rows += [{"kind": "diagnostics", "step": 10 * (e + 1), "epoch": e, **look(e, random)} for e in range(3)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"half')
    assert [path.name for path in draw_diagnostics(log, tmp_path / "figures")] == [
        "attention.png", "gradients.png", "modality.png",
    ]  # fmt: skip
    assert len(read_diagnostics(log)) == 3
    # They have pictures of their own: the learning curves know losses alone.
    assert [axes.get_title(loc="left") for axes in draw_learning_curves(log).axes] == ["loss"]


def test_the_callback_asks_when_due(tmp_path):
    class Counting:
        name = "counting"
        steps = 0

        def before_step(self):
            self.steps += 1

        def __call__(self):
            return {"nothing": float("nan"), "steps": self.steps}

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    log, drawn = JsonLinesLog(tmp_path / "log.jsonl"), []
    callback = Diagnostics([Counting()], every=2, log=log.write, draw=lambda: drawn.append(1))
    model.fit(np.ones((8, 2)), np.ones((8, 1)), batch_size=2, epochs=5, verbose=0, callbacks=[log, callback])
    rows = read_diagnostics(tmp_path / "log.jsonl")
    assert [row["epoch"] for row in rows] == [1, 3] and len(drawn) == 2
    assert [row["counting"] for row in rows] == [{"nothing": None, "steps": 1}, {"nothing": None, "steps": 2}]


@pytest.mark.parametrize(("convert", "state", "config"), [
    (convert_open_clip_coca, coca, COCA_CONFIG),
    (convert_blip_retrieval, blip_retrieval, BLIP_CONFIG),
])  # fmt: skip
def test_shares_where_the_embedding_reads_a_class_token_or_the_fusion(convert, state, config):
    model, random = convert(state(), config), np.random.default_rng(0)
    ids = tf.constant(random.integers(1, 28, (6, 5)))
    batch = {"image": tf.constant(random.normal(size=(6, 16, 16, 3)), tf.float32), "token_ids": ids, "token_mask": ids > 0}
    shares = ImageTextModalityProbe(model, batch)()["contrastive"]
    for way in ("ablation", "gradient"):
        assert shares[way]["text"] > 1e-3 and shares[way]["image"] + shares[way]["text"] == pytest.approx(1.0)
