"""Converted BLIP against transformers' own classes with the same random weights."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

from gradients import to_numpy
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from mmfusion.convert import convert_blip_captioning, convert_blip_retrieval

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4
GREEDY = {"num_beams": 1, "do_sample": False}
TINY = {
    "vision_config": {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32,
        "patch_size": 8,
    },
    "text_config": {
        "vocab_size": 60, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2,
        "max_position_embeddings": 20, "bos_token_id": 57, "sep_token_id": 58, "pad_token_id": 0,
    },
    "image_text_hidden_size": 10,
}  # fmt: skip
# As Salesforce/blip-image-captioning-base and blip-itm-base say it.
BASE = {"text_config": {"num_attention_heads": 12}}
SIZES = [pytest.param(TINY, id="tiny"), pytest.param(BASE, id="base", marks=pytest.mark.slow)]


def random_values(module):
    """Biases and norms too; the text's layers add little each, so that what was said last decides what is said next."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            part = 0.4 if "text" in name and (".encoder.layer." in name or weight.dim() < 2) else 1.0
            spread = part * (0.2 if weight.dim() < 2 else weight[0].numel() ** -0.5)
            weight.copy_((weight if weight.dim() < 2 else 0.0) + spread * torch.randn(weight.shape, generator=generator))
    return module.eval()


def pair(kind, convert, config):
    config = BlipConfig(**config)
    theirs = random_values(kind(config))
    if kind is BlipForConditionalGeneration:
        with torch.no_grad():
            # Which ours never writes.
            theirs.text_decoder.cls.predictions.bias[[config.text_config.pad_token_id, config.text_config.bos_token_id]] -= 50.0
    random, size, vocabulary = np.random.default_rng(0), config.vision_config.image_size, config.text_config.vocab_size
    images = random.normal(size=(4, size, size, 3)).astype("float32")
    ids = random.integers(1, min(vocabulary, 50), (4, 9))
    mask = np.arange(9) < np.array([9, 6, 9, 2])[:, None]
    inputs = {
        "pixel_values": torch.tensor(images.transpose(0, 3, 1, 2)),
        "input_ids": torch.tensor(np.where(mask, ids, 0)),
        "attention_mask": torch.tensor(mask).long(),
    }
    if kind is BlipForConditionalGeneration:
        end_two(theirs, inputs["pixel_values"])
    ours = convert(theirs.state_dict(), config.to_dict())
    return SimpleNamespace(ours=ours, theirs=theirs, images=images, ids=np.where(mask, ids, 0), mask=mask, inputs=inputs)


def end_two(model, pictures):
    """Makes the end so likely that two of four captions of 16 tokens end before their last two."""
    options = {"max_new_tokens": 14, "min_new_tokens": 14, "output_logits": True, "return_dict_in_generate": True}
    with torch.inference_mode():
        logits = torch.stack(model.generate(pixel_values=pictures, **GREEDY, **options).logits, dim=1)[:, 3:]
    short = (logits.max(-1).values - logits[..., model.config.text_config.sep_token_id]).min(1).values.sort().values
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[model.config.text_config.sep_token_id] += (short[1] + short[2]) / 2


@pytest.fixture(scope="module", params=SIZES)
def captioning(request):
    return pair(BlipForConditionalGeneration, convert_blip_captioning, request.param)


@pytest.fixture(scope="module", params=SIZES)
def retrieval(request):
    return pair(BlipForImageTextRetrieval, convert_blip_retrieval, request.param)


def test_image_features_and_logits(captioning):
    with torch.inference_mode():
        expected = captioning.theirs(**captioning.inputs)
    patches = captioning.ours.image_encoder(captioning.images)
    np.testing.assert_allclose(to_numpy(patches), expected.image_embeds.numpy(), rtol=0, atol=TOLERANCE)
    found = to_numpy(captioning.ours.caption_logits(patches, captioning.ids, captioning.mask))
    np.testing.assert_allclose(found[captioning.mask], expected.logits.numpy()[captioning.mask], rtol=0, atol=TOLERANCE)
    assert expected.logits.numpy()[captioning.mask].std() > 0.3


def test_greedy_words(captioning):
    head, most = captioning.ours.captioning_head, 16
    with torch.inference_mode():
        options = {**GREEDY, "max_new_tokens": most, "min_new_tokens": 3}
        expected = captioning.theirs.generate(pixel_values=captioning.inputs["pixel_values"], **options).numpy()
    assert (expected[:, 0] == head.start_id).all() and not (expected[:, 1:] == head.start_id).any()
    written = np.full((4, most), head.pad_id)
    written[:, : expected.shape[1] - 1] = expected[:, 1:]
    found = captioning.ours.caption(captioning.images, max_tokens=most, min_tokens=3)
    np.testing.assert_array_equal(to_numpy(found.token_ids), written)
    lengths = to_numpy(found.lengths)
    assert (lengths < most).sum() == 2 and len(np.unique(written)) > 8


def test_matching_and_contrast(retrieval):
    ours = retrieval.ours
    with torch.inference_mode():
        logits = retrieval.theirs(**retrieval.inputs).itm_score.numpy()
        cosines = retrieval.theirs(**retrieval.inputs, use_itm_head=False).itm_score.numpy()
    match = to_numpy(ours.match(retrieval.images, retrieval.ids, retrieval.mask))
    np.testing.assert_allclose(match, logits[:, 1] - logits[:, 0], rtol=0, atol=TOLERANCE)
    image, text = ours.encode_image(retrieval.images), ours.encode_text(retrieval.ids, retrieval.mask)
    np.testing.assert_allclose(to_numpy(image) @ to_numpy(text).T, cosines, rtol=0, atol=TOLERANCE)
    assert match.std() > 0.01 and cosines.std() > 0.01
    both = ours({"image": retrieval.images, "token_ids": retrieval.ids, "token_mask": retrieval.mask})
    np.testing.assert_allclose(to_numpy(both["match_logits"]), match, rtol=0, atol=1e-6)
    np.testing.assert_allclose(to_numpy(both["text_embedding"]), to_numpy(text), rtol=0, atol=1e-6)
