"""Signatures that take numbers for a whole call, behind a service: rows with the same are joined, others are told apart."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from fastapi.testclient import TestClient
from untrained import untrained_run

from mmfusion.export import example_image, export_model, load
from mmfusion.serving.app import build_app
from mmfusion.serving.batcher import Batching
from mmfusion.serving.limits import Limits
from mmfusion.serving.metrics import Metrics
from mmfusion.serving.rows import alike
from mmfusion.serving.served_model import ServedModel
from mmfusion.training import load_run

PICTURES = [example_image(size) for size in (64, 96, 40)]


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    decoding = {"method": "greedy", "num_samples": 2, "beam_size": 2}
    run = load_run(untrained_run(folder / "run", "captioning", fusion={"depth": 1, "num_heads": 2}, decoding=decoding))
    return export_model(run, folder / "export", with_options=True)


@pytest.fixture(scope="module")
def model(export) -> ServedModel:
    return ServedModel(load(export), name="mine", limits=Limits(), batching=Batching(max_batch=4), metrics=Metrics())


@pytest.fixture(scope="module")
def client(model):
    with TestClient(build_app(model)) as client:
        for _ in range(600):
            if client.get("/ready").status_code == 200:
                break
            time.sleep(0.1)
        yield client


def asked(client, signature: str, **inputs):
    pictures = [{"b64": base64.b64encode(picture).decode()} for picture in PICTURES]
    body = {"signature_name": signature, "inputs": {"image_bytes": pictures, **inputs}}
    return client.post("/v1/models/mine:predict", json=body)


def said(model, signature: str, **inputs):
    """What the export itself says."""
    specs = model.signatures[signature].inputs
    values = {"image_bytes": PICTURES, **inputs}
    return model.predictor.functions[signature](**{key: tf.constant(values[key], spec.dtype) for key, spec in specs.items()})


SAMPLE = {"seed": [3, 4, 5], "temperature": 1.5, "top_p": 0.9, "max_tokens": 6}
BEAM = {"length_penalty": 0, "min_tokens": 2, "max_tokens": 5}


@pytest.mark.parametrize(("signature", "inputs"), [("caption_sample", SAMPLE), ("caption_beam", BEAM)])
def test_by_column(client, model, signature, inputs):
    answer = asked(client, signature, **inputs)
    assert answer.status_code == 200, answer.text
    outputs, expected = answer.json()["outputs"], said(model, signature, **inputs)
    assert outputs["caption"] == [[text.decode() for text in row] for row in expected["caption"].numpy()]
    np.testing.assert_allclose(outputs["score"], expected["score"], rtol=1e-4)


def test_rows_of_other_options_are_called_apart(model):
    """As two requests at a time would be: each row gets what it asked for."""
    signature = model.signatures["caption_sample"]
    rows = [
        {"image_bytes": picture, "seed": np.int32(7), "temperature": np.float32(temperature), "top_p": np.float32(1),
         "max_tokens": np.int32(6)}
        for picture, temperature in zip(PICTURES, (0.5, 3.0, 0.5), strict=True)
    ]  # fmt: skip
    assert alike(rows, signature) == [[0, 2], [1]]
    cold, hot = (
        said(model, "caption_sample", seed=[7] * 3, temperature=temperature, top_p=1.0, max_tokens=6)
        for temperature in (0.5, 3.0)
    )
    found = model.call(signature, rows)
    for number, expected in enumerate((cold, hot, cold)):
        np.testing.assert_array_equal(found[number]["caption"], expected["caption"][number])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0}, "temperature: expected a number above 0"),
        ({"temperature": "hot"}, "not float32 [inputs: temperature[0]]: expected float32, found a string"),
        ({"temperature": 1e39}, "a number beyond 32 bits"),
        ({"temperature": float("nan")}, "a number beyond 32 bits"),
        ({"top_p": [0.5, 0.5, 0.5]}, "not float32"),
        ({"max_tokens": 2.5}, "not int32"),
        ({"max_tokens": True}, "not int32"),
        ({"seed": 3}, "not a column [inputs: seed]"),
        ({"seed": [1, 2]}, "columns of different lengths"),
        ({"seed": [1, 2, 2**31]}, "a number beyond 32 bits"),
    ],
)
def test_what_is_wrong_is_told(client, wrong, message):
    pictures = [{"b64": base64.b64encode(picture).decode()} for picture in PICTURES]
    body = {"signature_name": "caption_sample", "inputs": {"image_bytes": pictures, **SAMPLE, **wrong}}
    answer = client.post("/v1/models/mine:predict", content=json.dumps(body))
    assert answer.status_code == 400 and message in answer.json()["error"], answer.text


def test_by_row_there_is_no_place_for_them(client):
    body = {"signature_name": "caption_beam", "instances": [{"image_bytes": {"b64": base64.b64encode(PICTURES[0]).decode()}}]}
    answer = client.post("/v1/models/mine:predict", json=body)
    assert answer.status_code == 400
    assert "send length_penalty and max_tokens and min_tokens once, and an array of each other input" in answer.json()["error"]


def test_the_example_beside_the_export_is_answered(client, export):
    for name in ("caption_sample", "caption_beam"):
        answer = client.post("/v1/models/mine:predict", content=(export / "examples" / f"{name}.json").read_bytes())
        assert answer.status_code == 200 and len(answer.json()["outputs"]["caption"][0]) == 2


def test_they_are_in_the_metadata(client):
    signatures = client.get("/v1/models/mine/metadata").json()["metadata"]["signature_def"]["signature_def"]
    temperature = signatures["caption_sample"]["inputs"]["temperature"]
    assert temperature["dtype"] == "DT_FLOAT" and temperature["tensor_shape"] == {"dim": [], "unknown_rank": False}
