"""Converted CoCa against open_clip's, which runs in an environment of its own.

MMFUSION_OPEN_CLIP_PYTHON names its Python; `open_clip_reference.py` says what it needs.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gradients import to_numpy

from mmfusion.convert import convert_open_clip_coca

PYTHON = os.environ.get("MMFUSION_OPEN_CLIP_PYTHON")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not PYTHON, reason="needs MMFUSION_OPEN_CLIP_PYTHON, a Python with open_clip"),
]
TOLERANCE = 1e-4
SIZES = [pytest.param((), id="tiny"), pytest.param(("coca_ViT-B-32",), id="ViT-B-32", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=SIZES)
def coca(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coca")
    script = Path(__file__).with_name("open_clip_reference.py")
    # Without this package's own paths, which are of another environment.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([PYTHON, script, folder, *request.param], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    ours = convert_open_clip_coca(folder / "model.safetensors", folder / "config.json")
    with np.load(folder / "reference.npz") as file:
        reference = SimpleNamespace(**{name: file[name] for name in file})
    (folder / "model.safetensors").unlink()
    return SimpleNamespace(
        ours=ours,
        reference=reference,
        mask=reference.token_ids != 0,
        config=json.loads((folder / "config.json").read_text(encoding="utf-8")),
    )


def assert_near(found, expected):
    np.testing.assert_allclose(to_numpy(found), expected, rtol=0, atol=TOLERANCE)


def test_image_features_and_embedding(coca):
    patches = coca.ours.image_encoder(coca.reference.images)
    assert_near(patches, coca.reference.patches)
    assert_near(coca.ours.embed_patches(patches), coca.reference.image_embedding)
    assert coca.reference.image_embedding.std(axis=0).mean() > 0.01


def test_text_embedding_however_it_is_padded(coca):
    ids, mask, expected = coca.reference.token_ids, coca.mask, coca.reference.text_embedding
    assert_near(coca.ours.encode_text(ids, mask), expected)
    assert sorted(mask.sum(1)) != [ids.shape[1]] * 4 and mask[0].all()
    for row, real in enumerate(mask.sum(1)):
        assert_near(coca.ours.encode_text(ids[row : row + 1, :real]), expected[row : row + 1])
    assert expected.std(axis=0).mean() > 0.01


def test_logits_and_temperature(coca):
    ids, mask = coca.reference.token_ids, coca.mask
    found = to_numpy(coca.ours.caption_logits(coca.ours.image_encoder(coca.reference.images), ids[:, :-1], mask[:, :-1]))
    counted = mask[:, 1:]
    assert_near(found[counted], coca.reference.caption_logits[counted])
    assert_near(coca.ours.contrastive_head.scale, coca.reference.scale)
    assert coca.reference.caption_logits[counted].std() > 0.05


def test_greedy_words(coca):
    """Theirs ends what has not ended at the last of ``seq_len`` tokens, ours where it stops."""
    length, written = int(coca.reference.sequence), coca.reference.written
    head = coca.ours.captioning_head
    assert (written[:, 0] == head.start_id).all() and not (written[:, 1:] == head.start_id).any()
    found = coca.ours.caption(coca.reference.images, max_tokens=length - 2, min_tokens=4)
    ids, lengths = to_numpy(found.token_ids).astype(int), to_numpy(found.lengths).astype(int)
    ended = (ids == head.end_id).any(1)
    closed = np.concatenate([ids, np.where(ended, head.pad_id, head.end_id)[:, None]], axis=1)
    np.testing.assert_array_equal(closed, written[:, 1:])
    assert len(np.unique(ids)) > 3 and lengths.min() >= 5
