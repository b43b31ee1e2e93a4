"""An export in a process that knows only TensorFlow and tensorflow-text answers exactly like the Keras model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

pytestmark = pytest.mark.slow

TEXTS = ["a dog", "The man sits on the sand. " * 9, ""]


class Served(NamedTuple):
    answers: dict[str, np.ndarray]
    signatures: dict[str, Any]
    errors: list[str]
    imported: list[str]


@pytest.fixture(scope="module")
def served(export, run, pictures, tmp_path_factory) -> Served:
    """The answers of an export that was moved to another folder, whose run is gone for the process."""
    folder = tmp_path_factory.mktemp("moved")
    moved = folder / "elsewhere"
    shutil.copytree(export, moved)
    tokens, images = run.tokenizer(TEXTS), pictures[:3]
    np.savez(
        folder / "request.npz",
        lengths=np.array([len(image) for image in images]),
        bytes=np.frombuffer(b"".join(images), np.uint8),
        texts=np.array(TEXTS),
        token_ids=tokens.token_ids.numpy(),
        token_mask=tokens.token_mask.numpy(),
    )
    script = Path(__file__).with_name("serve.py")
    process = subprocess.run(
        [sys.executable, str(script), str(moved), str(folder / "request.npz"), str(folder / "answer.npz")],
        capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    told = json.loads(process.stdout.splitlines()[-1])
    with np.load(folder / "answer.npz", allow_pickle=False) as answers:
        return Served({name: answers[name] for name in answers.files}, **told)


def test_mmfusion_is_not_needed(served):
    # TensorFlow itself may import Keras; the export's own process asks for none of ours.
    assert "mmfusion" not in served.imported


def test_signatures_are_the_contract(served):
    image, text = {"image_bytes": ["string", [None]]}, {"text": ["string", [None]]}
    embedding = {"embedding": ["float32", [None, 12]]}
    found = served.signatures
    assert set(found) - {"serving_default"} == {"encode_image", "encode_text", "encode_text_ids", "match", "caption", "attend"}
    assert found["encode_image"] == {"inputs": image, "outputs": embedding}
    assert found["encode_text"] == {"inputs": text, "outputs": embedding}
    ids = found["encode_text_ids"]["inputs"]
    assert ids["token_ids"][0] == "int32" and ids["token_mask"][0] == "bool" and ids["token_ids"][1][0] is None
    assert found["encode_text_ids"]["outputs"] == embedding
    assert found["match"]["inputs"] == {**image, **text}
    assert found["match"]["outputs"] == {"score": ["float32", [None]], "similarity": ["float32", [None]]}
    assert found["caption"]["inputs"] == image
    assert found["caption"]["outputs"] == {"caption": ["string", [None]], "score": ["float32", [None]]}
    assert found["attend"]["inputs"] == {**image, **text}
    attention, tokens = found["attend"]["outputs"]["attention"], found["attend"]["outputs"]["tokens"]
    assert attention[0] == "float32" and len(attention[1]) == 6 and tokens[0] == "string"


def test_answers_equal_the_keras_model(served, run, pictures):
    pixels = tf.stack([run.transform(tf.constant(image)) for image in pictures[:3]])
    ids, mask = run.tokenizer(TEXTS)
    answers = served.answers

    def close(name: str, value: Any) -> None:
        np.testing.assert_allclose(answers[name], np.asarray(value), rtol=1e-5, atol=2e-5, err_msg=name)

    image, text = run.model.encode_image(pixels), run.model.encode_text(ids, mask)
    close("encode_image/embedding", image)
    close("encode_text/embedding", text)
    close("encode_text_ids/embedding", text)
    words = run.model.text_encoder(ids, token_mask=mask)
    close("match/score", tf.sigmoid(run.model.match_tokens(run.model.image_encoder(pixels), words, mask)))
    close("attend/attention", run.model.attend(pixels, ids, mask))
    assert answers["attend/tokens"].tolist() == np.vectorize(bytes.decode)(run.tokenizer.id_to_token(ids).numpy()).tolist()
    beams = run.model.caption(pixels, beam_size=2)
    captions = run.tokenizer.detokenize(beams.token_ids[:, 0]).numpy()
    assert answers["caption/caption"].tolist() == [caption.decode() for caption in captions]
    # With a length penalty of 1 a beam's score is the mean log-probability a token already.
    close("caption/score", beams.scores[:, 0])


def test_ranges(served):
    """Scores lie in [0, 1], as the design says; the similarity is the cosine moved there."""
    answers = served.answers
    for name in ("encode_image/embedding", "encode_text/embedding", "encode_text_ids/embedding"):
        np.testing.assert_allclose(np.linalg.norm(answers[name], axis=-1), 1.0, rtol=1e-5)
    for name in ("match/score", "match/similarity", "attend/attention"):
        assert np.all((answers[name] >= 0) & (answers[name] <= 1)), name
    cosine = np.sum(answers["encode_image/embedding"] * answers["encode_text/embedding"], axis=-1)
    np.testing.assert_allclose(answers["match/similarity"], (1 + cosine) / 2, atol=1e-5)
    assert np.all(answers["caption/score"] <= 0)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_batches_of_any_size(count, served):
    assert served.answers[f"{count}:encode_image/embedding"].tolist() == [count, 12]
    assert served.answers[f"{count}:caption/caption"].tolist() == [count]
    assert served.answers[f"{count}:caption/score"].tolist() == [count]


def test_garbage_is_an_error_and_the_process_lives_on(served):
    assert served.errors == ["InvalidArgumentError"] * 5 + ["InvalidArgumentError: True"] * 4
