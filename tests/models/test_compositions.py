"""Models of other parts: poolings, causal text, a pooled image, masked language, what the fusion holds of an image."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from factories import IMAGE_SIZE, MAX_LENGTH, VOCABULARY_SIZE, randomized, tiny_batch, tiny_model

from mmfusion.encoders import TextTransformer, VisionTransformer
from mmfusion.errors import ConfigError
from mmfusion.fusion import CoFusion, CrossFusion, QFormerFusion, ResamplerFusion
from mmfusion.layers import AttentionPooling, ModalityDropout
from mmfusion.models import CaptioningHead, ContrastiveHead, ImageTextModel, MatchingHead

HEADS = ("contrastive", "matching", "masked_language", "captioning")


def to_numpy(value):
    return keras.ops.convert_to_numpy(keras.ops.cast(value, "float32"))


def head(image_pooling="mean", text_pooling="mean"):
    layer = ContrastiveHead(embedding_dim=5, image_pooling=image_pooling, text_pooling=text_pooling, image_heads=2, text_heads=3)
    layer.build((None, None, 8), (None, None, 6))
    return randomized(layer)


def unit(vector):
    return vector / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), 1e-6)


@pytest.fixture(scope="module")
def tokens():
    random = np.random.default_rng(1)
    text, image = random.normal(size=(3, 5, 6)).astype("float32"), random.normal(size=(3, 4, 8)).astype("float32")
    mask = np.array([[True] * 5, [True] * 3 + [False] * 2, [False, True, False, True, False]])
    return text, mask, image


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "attention"])
def test_poolings_are_what_they_say(pooling, tokens):
    text, mask, _ = tokens
    layer = head(text_pooling=pooling)
    weight = to_numpy(layer.text_projection.kernel)
    if pooling == "mean":
        pooled = np.stack([row[real].mean(0) for row, real in zip(text, mask, strict=True)])
    elif pooling == "first":
        pooled = np.where(mask[:, :1], text[:, 0], 0.0)
    elif pooling == "last":
        pooled = np.stack([text[0, 4], text[1, 2], text[2, 3]])
    else:
        pooled = to_numpy(layer.text_pooler(text, mask))
    found = to_numpy(layer.embed_text(text, mask))
    np.testing.assert_allclose(found, unit(pooled @ weight), atol=1e-5)
    hidden = np.where(mask[..., None], text, np.nan)
    np.testing.assert_array_equal(to_numpy(layer.embed_text(hidden, mask)), found)
    nothing = to_numpy(layer.embed_text(text, np.zeros_like(mask)))
    np.testing.assert_array_equal(nothing, 0.0)
    copy = ContrastiveHead.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()


def test_an_image_can_be_pooled_by_attention_and_masked(tokens):
    image, layer = tokens[2], head(image_pooling="attention")
    mask = np.array([[True] * 4, [True] * 2 + [False] * 2, [True] * 4])
    changed = image.copy()
    changed[1, 2:] = np.nan
    np.testing.assert_array_equal(to_numpy(layer.embed_image(image, mask)), to_numpy(layer.embed_image(changed, mask)))
    assert np.abs(to_numpy(layer.embed_image(image)) - to_numpy(layer.embed_image(image[::-1]))).max() > 1e-3
    # SigLIP's head has a feed-forward part behind the attention.
    deep = ContrastiveHead(embedding_dim=5, image_pooling="attention", pooling_mlp_ratio=2.0)
    deep.build((None, None, 8), (None, None, 6))
    assert deep.image_pooler.feed_forward.hidden_dim == 16 and deep.text_pooler is None
    pooled = to_numpy(deep.image_pooler(image, mask)) @ to_numpy(deep.image_projection.kernel)
    np.testing.assert_allclose(to_numpy(deep.embed_image(image, mask)), unit(pooled), atol=1e-5)
    assert ContrastiveHead.from_config(deep.get_config()).get_config() == deep.get_config()
    with pytest.raises(ConfigError, match="unknown pooling"):
        ContrastiveHead(embedding_dim=4, text_pooling="max")


def test_causal_text_knows_nothing_of_what_follows():
    batch = tiny_batch(2)
    full = np.ones_like(batch["token_mask"])
    changed = batch["token_ids"].copy()
    changed[:, 1:] = 9
    first_token = ContrastiveHead(embedding_dim=8, text_pooling="first", name="contrastive_head")
    model = randomized(tiny_model(heads=("contrastive", "matching"), causal_text=True, contrastive_head=first_token))
    same, other = (to_numpy(model.encode_text(ids, full)) for ids in (batch["token_ids"], changed))
    np.testing.assert_allclose(same, other, atol=1e-6)
    match, matched = (to_numpy(model.match(batch["image"], ids, full)) for ids in (batch["token_ids"], changed))
    assert np.abs(match - matched).max() > 1e-4
    # What was read both ways is no substitute for it.
    both = model.text_encoder(batch["token_ids"], token_mask=full)
    np.testing.assert_allclose(to_numpy(model.encode_text(batch["token_ids"], full, text=both)), same, atol=1e-6)


def test_hidden_tokens_are_guessed_from_both_sides_and_the_image():
    model, batch = randomized(tiny_model(heads=("masked_language",))), tiny_batch(2)
    assert model.heads == ("masked_language",)
    mask, ids = np.ones_like(batch["token_mask"]), batch["token_ids"]
    patches = model.image_encoder(batch["image"])
    logits = to_numpy(model.masked_language_logits(patches, ids, mask))
    assert logits.shape == (2, MAX_LENGTH, VOCABULARY_SIZE)
    np.testing.assert_allclose(to_numpy(model(dict(batch, token_mask=mask))["masked_language_logits"]), logits, atol=1e-5)
    later = ids.copy()
    later[:, -1] = 11
    assert np.abs(to_numpy(model.masked_language_logits(patches, later, mask))[:, 0] - logits[:, 0]).max() > 1e-4
    assert np.abs(to_numpy(model.masked_language_logits(patches[::-1], ids, mask)) - logits).max() > 1e-4
    with pytest.raises(ConfigError, match="no captioning head"):
        model.caption(batch["image"])


def test_a_fusion_may_read_a_pooled_image():
    pooling = AttentionPooling(num_heads=2, num_queries=3, norm=True, name="image_pooling")
    model, batch = randomized(tiny_model(heads=HEADS, image_pooling=pooling)), tiny_batch(2)
    outputs = model(batch)
    assert np.isfinite(to_numpy(outputs["caption_logits"])).all()
    maps = to_numpy(model.attend(batch["image"], batch["token_ids"], batch["token_mask"]))
    assert maps.shape == (2, 2, 2, MAX_LENGTH, 2, 3)
    np.testing.assert_allclose(maps.sum((-1, -2)), 1.0, atol=1e-5)
    patches = model.image_encoder(batch["image"])
    logits, scores = model.caption_logits(patches, batch["token_ids"], batch["token_mask"], return_scores=True)
    np.testing.assert_array_equal(to_numpy(logits), to_numpy(outputs["caption_logits"]))
    assert tuple(scores.shape) == (2, 2, 2, MAX_LENGTH, 6)
    # Cached decoding reads the pooled image, too.
    written = to_numpy(model.caption(batch["image"], max_tokens=2).token_ids)
    first = to_numpy(model.caption_logits(patches, np.full((2, 1), 2, "int32")))[:, 0].copy()
    first[:, [0, 2]] = -np.inf
    np.testing.assert_array_equal(written[:, 0], first.argmax(-1))
    with pytest.raises(ConfigError, match="one query"):
        tiny_model(image_pooling=AttentionPooling(num_heads=2))


def test_modality_dropout_acts_in_training_alone():
    model, batch = randomized(tiny_model(heads=("matching",), modality_dropout=ModalityDropout(rate=0.9, seed=1))), tiny_batch(4)
    plain = [to_numpy(model(batch)["match_logits"]) for _ in range(2)]
    np.testing.assert_array_equal(*plain)
    dropped = to_numpy(model(batch, training=True)["match_logits"])
    assert np.isfinite(dropped).all() and np.abs(dropped - plain[0]).max() > 1e-4


def test_all_parts_come_back_from_a_file(tmp_path):
    model = tiny_model(
        heads=HEADS,
        contrastive_head=ContrastiveHead(embedding_dim=8, image_pooling="attention", text_pooling="last", image_heads=2),
        image_pooling=AttentionPooling(num_heads=2, num_queries=3, name="image_pooling"),
        modality_dropout=ModalityDropout(rate=0.1, name="modality_dropout"),
        causal_text=True,
        contrastive_tokens="fusion",
    )
    batch = tiny_batch(2)
    randomized(model).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert (loaded.heads, loaded.causal_text, loaded.contrastive_tokens) == (HEADS, True, "fusion")
    assert loaded.modality_dropout.rate == 0.1 and loaded.masked_language_head.mask_id == 4
    for name, value in model(batch).items():
        np.testing.assert_array_equal(to_numpy(value), to_numpy(loaded(batch)[name]))


def test_matching_may_read_the_image_or_both_streams():
    batch = tiny_batch(2)
    parts = {"dim": 12, "image_dim": 16, "depth": 1, "num_heads": 2}
    blind = CrossFusion(direction="image", **parts)
    model = randomized(tiny_model(heads=("matching",), fusion=blind))
    assert model.matching_tokens == "image"
    other = dict(batch, token_ids=np.where(batch["token_ids"] > 3, 29, batch["token_ids"]))
    for change in (other, dict(batch, image=batch["image"][::-1])):
        assert np.abs(to_numpy(model(change)["match_logits"]) - to_numpy(model(batch)["match_logits"])).max() > 1e-5
    both = randomized(tiny_model(heads=("matching",), fusion=CrossFusion(direction="both", **parts), matching_tokens="both"))
    fused = both.fusion(both.text_encoder(batch["token_ids"]), both.image_encoder(batch["image"]))
    head = both.matching_head
    product = to_numpy(head.transform(fused.text[:, 0])) * to_numpy(head.image_transform(keras.ops.mean(fused.image, axis=1)))
    expected = product @ to_numpy(head.output_dense.kernel)[:, 0] + to_numpy(head.output_dense.bias)
    np.testing.assert_allclose(to_numpy(both.match(batch["image"], batch["token_ids"])), expected, atol=1e-5)
    with pytest.raises(ConfigError, match="the matching head would not see the image"):
        tiny_model(heads=("matching",), fusion=CrossFusion(direction="image", **parts), matching_tokens="text")
    with pytest.raises(ConfigError, match="cannot be causal"):
        tiny_model(heads=("captioning",), fusion=CrossFusion(direction="image", **parts))
    with pytest.raises(ConfigError, match="the masked language head would not see the image"):
        tiny_model(heads=("masked_language",), fusion=CrossFusion(direction="image", **parts))


@pytest.mark.parametrize("style", ["qformer", "resampler", "co"])
def test_the_mask_of_patches_is_of_patches_alone_however_many_stand_for_them(style):
    sizes = {"dim": 12, "image_dim": 16, "depth": 2, "num_heads": 2}
    fusion = {
        "qformer": lambda: QFormerFusion(**sizes, num_queries=6),
        "resampler": lambda: ResamplerFusion(**sizes, num_latents=6, inner="co"),
        "co": lambda: CoFusion(**sizes),
    }[style]()
    heads = ("contrastive", "matching")
    model = randomized(tiny_model(heads=heads, fusion=fusion, matching_tokens="both", contrastive_tokens="fusion"))
    batch, seen = tiny_batch(2), np.array([[True, False, True, False, True, False], [True] * 6])
    patches, text = model.image_encoder(batch["image"]), model.text_encoder(batch["token_ids"])
    fused, real = fusion(text, patches, image_mask=seen), seen if style == "co" else np.ones_like(seen)
    expected = to_numpy(model.matching_head(fused.text, image=fused.image, image_mask=real))
    np.testing.assert_allclose(to_numpy(model.match_tokens(patches, text, patch_mask=seen)), expected, atol=1e-5)
    tokens = fusion.image_tokens(patches, image_mask=seen)
    expected = to_numpy(model.contrastive_head.embed_image(tokens, real))
    np.testing.assert_allclose(to_numpy(model.embed_patches(patches, patch_mask=seen)), expected, atol=1e-5)


def test_impossible_compositions_are_refused():
    parts = tiny_model()
    streams = {"image_encoder": parts.image_encoder, "text_encoder": parts.text_encoder}
    with pytest.raises(ConfigError, match="the contrastive head needs a fusion"):
        ImageTextModel(**streams, contrastive_head=parts.contrastive_head, contrastive_tokens="fusion")
    with pytest.raises(ConfigError, match="the matching and captioning heads need a fusion"):
        ImageTextModel(**streams, matching_head=parts.matching_head, captioning_head=parts.captioning_head)
    with pytest.raises(ConfigError, match="expected encoder or pooling or fusion"):
        tiny_model(contrastive_tokens="patches")
    pooling = AttentionPooling(num_heads=2, num_queries=3)
    with pytest.raises(ConfigError, match="without a pooling"):
        tiny_model(contrastive_tokens="pooling")
    for queries, options in ((3, {"contrastive_tokens": "pooling"}), (-1, {"contrastive_tokens": "pooling"}), (1, {})):
        with pytest.raises(ConfigError, match="impossible contrastive_queries"):
            tiny_model(image_pooling=pooling, contrastive_queries=queries, **options)
    with pytest.raises(ConfigError, match="unknown contrastive_text"):
        tiny_model(contrastive_text="words")
    with pytest.raises(ConfigError, match="a class token that there is not"):
        tiny_model(contrastive_text="class_token")
    with pytest.raises(ConfigError, match="cannot read a text without an image"):
        tiny_model(contrastive_text="fusion", fusion=CoFusion(dim=12, image_dim=16, depth=1, num_heads=2))
    with pytest.raises(ConfigError, match="the contrastive head needs a fusion"):
        ImageTextModel(**streams, contrastive_head=parts.contrastive_head, contrastive_text="fusion")
    with pytest.raises(ConfigError, match="a head of both streams needs the transform"):
        tiny_model(heads=("matching",), matching_head=MatchingHead(transform=False), matching_tokens="both")


def with_leading_tokens(**options):
    encoder = VisionTransformer(
        image_size=IMAGE_SIZE, patch_size=8, dim=16, depth=1, num_heads=2, num_leading_tokens=2, name="image_encoder"
    )
    return randomized(tiny_model(image_encoder=encoder, **options))


def test_leading_tokens_are_read_but_have_no_place_on_the_map():
    model, batch = with_leading_tokens(contrastive_head=head_of("first")), tiny_batch(2)
    ids, mask = batch["token_ids"], batch["token_mask"]
    tokens = model.image_encoder(batch["image"])
    assert tuple(tokens.shape) == (2, 8, 16)
    expected = unit(to_numpy(tokens)[:, 0] @ to_numpy(model.contrastive_head.image_projection.kernel))
    np.testing.assert_allclose(to_numpy(model.encode_image(batch["image"])), expected, atol=1e-5)
    maps = to_numpy(model.attend(batch["image"], ids, mask))
    scores = to_numpy(model.fusion(model.text_encoder(ids, mask), tokens, text_mask=mask, return_scores=True).scores)
    assert scores.shape[-1] == 8 and maps.shape == (*scores.shape[:-1], 2, 3)
    kept = scores[..., 2:]
    np.testing.assert_allclose(
        maps.reshape(kept.shape)[mask_of(maps, mask)], (kept / kept.sum(-1, keepdims=True))[mask_of(maps, mask)], atol=1e-5
    )
    assert np.isfinite(to_numpy(model(batch)["match_logits"])).all()
    pooled = with_leading_tokens(image_pooling=AttentionPooling(num_heads=2, num_queries=3, norm=True, name="image_pooling"))
    maps = to_numpy(pooled.attend(batch["image"], ids, mask))
    np.testing.assert_allclose(maps.sum((-1, -2))[mask_of(maps, mask)], 1.0, atol=1e-5)


def head_of(pooling):
    return ContrastiveHead(embedding_dim=8, image_pooling=pooling, name="contrastive_head")


def mask_of(maps, mask):
    return np.broadcast_to(mask[:, None, None], maps.shape[:4])


@pytest.mark.parametrize("queries", [0, 2])
def test_the_contrastive_head_may_read_what_is_pooled(queries):
    pooling = AttentionPooling(num_heads=2, num_queries=5, norm=True, output_norm=True, name="image_pooling")
    model = randomized(tiny_model(image_pooling=pooling, contrastive_tokens="pooling", contrastive_queries=queries))
    batch = tiny_batch(2)
    pooled = to_numpy(pooling(model.image_encoder(batch["image"])))
    read, rest = (pooled[:, :queries], pooled[:, queries:]) if queries else (pooled, pooled)
    expected = unit(read.mean(1) @ to_numpy(model.contrastive_head.image_projection.kernel))
    np.testing.assert_allclose(to_numpy(model.encode_image(batch["image"])), expected, atol=1e-5)
    ids, mask = batch["token_ids"], batch["token_mask"]
    fused = model.fusion(model.text_encoder(ids, mask), rest, text_mask=mask)
    match = to_numpy(model.matching_head(fused.text))
    np.testing.assert_allclose(to_numpy(model.match(batch["image"], ids, mask)), match, atol=1e-5)
    maps = to_numpy(model.attend(batch["image"], ids, mask))
    assert maps.shape == (2, 2, 2, MAX_LENGTH, 2, 3)
    np.testing.assert_allclose(maps.sum((-1, -2))[mask_of(maps, mask)], 1.0, atol=1e-5)


@pytest.mark.parametrize("reading", ["class_token", "fusion"])
def test_the_contrastive_head_may_read_the_text_otherwise(reading):
    encoder = TextTransformer(
        vocabulary_size=VOCABULARY_SIZE, max_length=MAX_LENGTH, dim=12, depth=1, num_heads=3, class_token="text",
        name="text_encoder",
    )  # fmt: skip
    contrast = ContrastiveHead(
        embedding_dim=8, text_pooling="first", text_norm=True, norm_epsilon=1e-3, projection_bias=True, name="contrastive_head"
    )
    parts = {"contrastive_head": contrast, "contrastive_text": reading}
    model, batch = randomized(with_text(encoder, **parts)), tiny_batch(3)
    ids, mask = batch["token_ids"], batch["token_mask"]
    if reading == "class_token":
        tokens = encoder.class_token_of(ids, mask)
    else:
        tokens = model.fusion.text_tokens(encoder(ids, mask), mask)
    pooled = to_numpy(tokens)[:, 0]
    gain, shift = (to_numpy(weight) for weight in contrast.text_pooled_norm.weights)
    pooled = (pooled - pooled.mean(-1, keepdims=True)) / np.sqrt(pooled.var(-1, keepdims=True) + 1e-3) * gain + shift
    expected = unit(pooled @ to_numpy(contrast.text_projection.kernel) + to_numpy(contrast.text_projection.bias))
    found = to_numpy(model.encode_text(ids, mask))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(to_numpy(model(batch)["text_embedding"]), found, atol=1e-5)
    both = model.text_encoder(ids, token_mask=mask)
    np.testing.assert_allclose(to_numpy(model.encode_text(ids, mask, text=both)), found, atol=1e-5)
    nothing = to_numpy(contrast.embed_text(tokens, np.zeros(tokens.shape[:2], bool)))
    np.testing.assert_array_equal(nothing, 0.0)


def with_text(encoder, **parts):
    made = tiny_model(**{name: part for name, part in parts.items() if name != "contrastive_text"})
    heads = {f"{name}_head": getattr(made, f"{name}_head") for name in made.heads}
    return ImageTextModel(
        image_encoder=made.image_encoder,
        text_encoder=encoder,
        fusion=made.fusion,
        **heads,
        contrastive_text=parts["contrastive_text"],
    )


def test_a_captioning_head_may_have_an_output_layer_of_its_own(tmp_path):
    head = CaptioningHead(
        start_id=2, end_id=3, transform=False, vocabulary_size=VOCABULARY_SIZE, output_bias=False, name="captioning_head"
    )
    model, batch = randomized(tiny_model(heads=("captioning",), captioning_head=head)), tiny_batch(2)
    ids, patches = batch["token_ids"], model.image_encoder(batch["image"])
    fused = model.fusion(model.text_encoder(ids, causal=True), patches, causal=True).text
    expected = to_numpy(fused) @ to_numpy(head.output_dense.kernel)
    np.testing.assert_allclose(to_numpy(model.caption_logits(patches, ids)), expected, atol=1e-5)
    written = to_numpy(model.caption(batch["image"], max_tokens=2).token_ids)
    first = to_numpy(model.caption_logits(patches, np.full((2, 1), 2, "int32")))[:, 0].copy()
    first[:, [0, 2]] = -np.inf
    np.testing.assert_array_equal(written[:, 0], first.argmax(-1))
    assert len(head.weights) == 1 and CaptioningHead.from_config(head.get_config()).get_config() == head.get_config()
    tied = CaptioningHead(start_id=2, end_id=3, norm_epsilon=1e-12, name="captioning_head")
    assert randomized(tiny_model(heads=("captioning",), captioning_head=tied)).captioning_head.norm.epsilon == 1e-12


def test_a_matching_head_may_read_the_first_token_as_it_is():
    head = MatchingHead(transform=False)
    head.build((None, None, 6))
    randomized(head)
    tokens = np.random.default_rng(0).normal(size=(3, 4, 6)).astype("float32")
    kernel, bias = (to_numpy(weight) for weight in head.weights)
    np.testing.assert_allclose(to_numpy(head(tokens)), tokens[:, 0] @ kernel[:, 0] + bias, atol=1e-6)
    assert MatchingHead.from_config(head.get_config()).get_config() == head.get_config()
