"""A real service over an export: what it answers, and what it refuses, while many ask at a time."""

from __future__ import annotations

import io
import itertools
import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from serving.conftest import b64

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TEXTS = ["a dog runs on sand", "the cat", "red heart .", "", "ein Hund", "a man smiling"]


def values(predictor, signature: str, **inputs):
    """What the export itself says, called alone."""
    answer = predictor.functions[signature](**{key: tf.constant(value) for key, value in inputs.items()})
    return {key: value.numpy() for key, value in answer.items()}


def test_what_it_says_when_it_starts(service):
    assert service.said.startswith(
        "serving untrained (encode_image, encode_text, encode_text_ids, match, caption, attend) at http"
    )
    assert service.ready == f"ready: {service.address}/v1/models/untrained\n"
    assert service.client.get("/health").json() == {"status": "alive"}
    assert service.client.get("/ready").json() == {"status": "AVAILABLE"}


def test_status_as_tensorflow_serving_tells_it(service):
    expected = {
        "model_version_status": [{"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}]
    }
    assert service.client.get("/v1/models/untrained").json() == expected
    assert service.client.get("/v1/models/untrained/versions/1").json() == expected


def test_metadata_are_the_saved_models_own(service, export):
    from tensorflow.python.tools.saved_model_utils import get_meta_graph_def

    told = service.client.get("/v1/models/untrained/metadata").json()
    assert told["model_spec"] == {"name": "untrained", "signature_name": "", "version": "1"}
    definitions = told["metadata"]["signature_def"]["signature_def"]
    written = get_meta_graph_def(str(export), "serve").signature_def
    assert set(definitions) == set(written) - {"__saved_model_init_op"} and "serving_default" in definitions
    types = {"DT_FLOAT": tf.float32, "DT_STRING": tf.string, "DT_INT32": tf.int32, "DT_BOOL": tf.bool}
    for name, definition in definitions.items():
        for told_side, side in ((definition["inputs"], written[name].inputs), (definition["outputs"], written[name].outputs)):
            assert set(told_side) == set(side)
            for key, info in told_side.items():
                assert info["name"] == side[key].name and types[info["dtype"]] == tf.as_dtype(side[key].dtype)
                sizes = [int(dimension["size"]) for dimension in info["tensor_shape"]["dim"]]
                assert sizes == [dimension.size for dimension in side[key].tensor_shape.dim]


def test_every_signature_by_row_and_by_column(predict, predictor, pictures):
    ids, mask = [[2, 4, 5, 3], [2, 6, 3, 0]], [[True] * 4, [True, True, True, False]]
    asked = {
        "encode_image": {"image_bytes": pictures},
        "encode_text": {"text": TEXTS},
        "encode_text_ids": {"token_ids": ids, "token_mask": mask},
        "match": {"image_bytes": pictures, "text": TEXTS},
        "caption": {"image_bytes": pictures},
        "attend": {"image_bytes": pictures, "text": TEXTS},
    }
    assert set(asked) == set(predictor.functions)
    for name, inputs in asked.items():
        expected = values(predictor, name, **inputs)
        sent = {key: [b64(value) if isinstance(value, bytes) else value for value in column] for key, column in inputs.items()}
        instances = [dict(zip(sent, row, strict=True)) for row in zip(*sent.values(), strict=True)]
        by_row = predict(name, instances=instances).json()["predictions"]
        by_column = predict(name, inputs=sent).json()["outputs"]
        if len(expected) == 1:
            (key,) = expected
            by_row, by_column = [{key: value} for value in by_row], {key: by_column}
        assert set(by_column) == set(expected) and all(set(row) == set(expected) for row in by_row)
        for key, value in expected.items():
            told = [np.array([row[key] for row in by_row]), np.array(by_column[key])]
            for array in told:
                if value.dtype == object:
                    assert array.tolist() == np.vectorize(bytes.decode)(value).tolist()
                else:
                    np.testing.assert_allclose(array, value, atol=1e-5, err_msg=f"{name}/{key}")


def test_without_a_name_the_default_signature_is_asked(service, predict, predictor, pictures, export):
    expected = predictor.encode_image(pictures[:1])
    for name in (None, "serving_default"):
        np.testing.assert_allclose(predict(name, instances=[b64(pictures[0])]).json()["predictions"], expected, atol=1e-5)
    answer = service.client.post(
        "/v1/models/untrained/versions/1:predict", json={"instances": [{"image_bytes": b64(pictures[0])}]}
    )
    np.testing.assert_allclose(answer.json()["predictions"], expected, atol=1e-5)
    example = service.client.post("/v1/models/untrained:predict", content=(export / "examples" / "request.json").read_bytes())
    assert list(example.json()["predictions"][0]) == ["caption", "score"]


def test_plain_routes(service, predictor, pictures):
    client = service.client
    caption = predictor.caption(pictures[:2])
    jpeg = {"content-type": "image/jpeg"}
    one = client.post("/caption", content=pictures[0], headers=jpeg).json()
    assert one["caption"] == caption[0].text and one["score"] == pytest.approx(caption[0].score, abs=1e-5)
    in_json = [b64(picture)["b64"] for picture in pictures[:2]]
    assert client.post("/caption", json={"image": in_json[0]}).json() == one
    several = client.post("/caption", json={"images": in_json}).json()["answers"]
    assert [row["caption"] for row in several] == [row.text for row in caption]
    files = [("image", ("a.png", picture)) for picture in pictures[:2]]
    assert [row["caption"] for row in client.post("/caption", files=files).json()["answers"]] == [row.text for row in caption]
    embedding = client.post("/encode_image", content=pictures[0]).json  # without a type it would have to be JSON
    assert "not UTF-8" in embedding()["error"] or "not JSON" in embedding()["error"]
    embedding = client.post("/encode_image", content=pictures[0], headers={"content-type": "application/octet-stream"}).json()
    np.testing.assert_allclose(embedding["embedding"], predictor.encode_image(pictures[:1])[0], atol=1e-5)
    words = client.post("/encode_text", json={"texts": TEXTS[:2]}).json()["answers"]
    np.testing.assert_allclose([row["embedding"] for row in words], predictor.encode_text(TEXTS[:2]), atol=1e-5)
    scores = predictor.match([pictures[0]] * 3, TEXTS[:3])
    matched = client.post("/match", json={"image": in_json[0], "texts": TEXTS[:3]}).json()["answers"]
    np.testing.assert_allclose([row["score"] for row in matched], scores, atol=1e-5)
    matched = client.post("/match", params={"text": TEXTS[1]}, content=pictures[0], headers=jpeg).json()
    assert matched["score"] == pytest.approx(scores[1], abs=1e-5) and 0 <= matched["similarity"] <= 1
    matched = client.post("/match", files={"image": pictures[0]}, data={"text": TEXTS[2]}).json()
    assert matched["score"] == pytest.approx(scores[2], abs=1e-5)
    looks = client.post("/attend", json={"image": in_json[0], "text": TEXTS[0]}).json()
    expected = predictor.attend(pictures[0], TEXTS[0])
    assert looks["tokens"] == expected.tokens
    np.testing.assert_allclose(looks["attention"], expected.maps, atol=1e-5)


def test_the_page_names_what_can_be_asked_and_loads_nothing_from_elsewhere(service):
    answer = service.client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for route in ("caption", "encode_image", "encode_text", "match", "attend"):
        assert f"POST /{route}<" in answer.text and f"<option>{route}</option>" in answer.text
    assert "translate</option>" not in answer.text and "$" not in answer.text
    for elsewhere in ("http://", "https://", "src=", "@import", "<link"):
        assert elsewhere not in answer.text


def png(width: int, height: int) -> bytes:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from serving_fuzz import png_header
    finally:
        sys.path.remove(str(BENCHMARKS))
    return png_header(width, height)


WHERE = "[instances[0]: image_bytes]"
TWO_MASKS = {"token_ids": [4], "token_mask": [True, True]}
BAD = {
    "empty": ("encode_image", {"image_bytes": ""}, f"{WHERE}: expected JPEG, PNG, WebP, GIF or BMP, found 0 bytes"),
    "not an image": ("caption", {"image_bytes": b64(b"believe me")}, f"not a readable image {WHERE}"),
    "200 megapixels": (
        "encode_image",
        b64(png(20_000, 10_000)),
        f"{WHERE}: expected at most 20,000,000, found PNG, 20000 x 10000",
    ),
    "10 MB of text": ("encode_text", "a dog " * 1_700_000, "[instances[0]: text]: expected at most 10,000 characters, found 10,"),
    "invalid base64": ("encode_image", {"b64": "%%%%"}, f"invalid base64 {WHERE}"),
    "wrong signature": ("paint", "a", "no such signature [signature_name]: expected encode_image or encode_text or"),
    "no UTF-8": ("encode_text", b64(b"\xff"), "[instances[0]: text]: expected UTF-8, found byte 0xff at 0"),
    "a missing key": (
        "match",
        {"text": "a"},
        "inputs of match [instances[0]]: expected image_bytes and text, found text",
    ),
    "a wrong type": ("encode_text", 5, "neither a text nor bytes [instances[0]: text]"),
    "unknown ids": ("encode_text_ids", {"token_ids": [99999], "token_mask": [True]}, "expected ids from 0 to"),
    "many ids": ("encode_text_ids", {"token_ids": [4] * 10, "token_mask": [True] * 10}, "expected at most 9 a text"),
    "two lengths": ("encode_text_ids", TWO_MASKS, "inputs of different lengths [instances[0]: token_ids and token_mask]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_told_what_is_wrong(predict, case):
    signature, instance, told = BAD[case]
    answer = predict(signature, instances=[instance])
    assert answer.status_code == 400 and list(answer.json()) == ["error"]
    assert told in answer.json()["error"] and len(answer.json()["error"]) < 500
    assert predict("encode_text", instances=["a dog"]).status_code == 200


def test_bad_bodies_and_addresses(service):
    client, predict = service.client, "/v1/models/untrained:predict"
    is_png, is_form = {"content-type": "image/png"}, {"content-type": "multipart/form-data"}
    cases = [
        (client.post(predict, content=b'{"instances": ["\xff"]}'), 400, "the body is not UTF-8"),
        (client.post(predict, content=b"[" * 10**6), 400, "nested too deeply"),
        (client.post(predict, json={"instances": []}), 400, "nothing was asked [instances]: expected 1 to 8, found 0"),
        (client.post(predict, json={"instances": ["a"] * 9}), 400, "too many rows [instances]: expected 1 to 8, found 9"),
        (client.post(predict, content=b"x" * 13_000_000), 413, "expected at most 12,000,000 bytes, found 13,000,000"),
        (client.post("/caption", content=(b"y" * 10**6 for _ in range(14))), 413, "the body is too large [body]"),
        (client.post("/v1/models/other:predict", json={}), 404, "expected untrained, version 1, found other, version 1"),
        (client.post("/v1/models/untrained/versions/2:predict", json={}), 404, "found untrained, version 2"),
        (client.get("/v1/models/other/metadata"), 404, "no such model"),
        (client.post("/v1/models/untrained:classify", json={}), 400, "expected :predict, found :classify"),
        (client.get("/caption"), 405, "Method Not Allowed [GET /caption]"),
        (client.get("/nowhere"), 404, "Not Found [GET /nowhere]"),
        (client.post("/translate", json={"text": "a"}), 404, "the model cannot translate: expected /caption or"),
        (client.post("/caption", json={"picture": ""}), 400, "expected image, images, text, texts, language, found picture"),
        (client.post("/caption", json={"text": "a", "image": "Qk0="}), 400, "caption takes no text"),
        (client.post("/caption", json={}), 400, "nothing was asked [image]: expected 1 to 8, found 0"),
        (client.post("/match", json={"images": ["Qk0="] * 2, "texts": ["a"] * 3}), 400, "do not go together"),
        (client.post("/caption", json={"image": "!"}), 400, "invalid base64 [image]"),
        (client.post("/caption", content=b"no form", headers=is_form), 400, "not a form"),
        (client.post("/caption", content=png(1, 60_000_000), headers=is_png), 400, "[question[0]: image_bytes]"),
    ]
    for answer, status, told in cases:
        assert answer.status_code == status and told in answer.json()["error"], (answer.status_code, answer.text[:300], told)
    assert client.get("/ready").status_code == 200


def test_what_is_not_http_at_all(service):
    parts = httpx.URL(service.address)
    for sent in (b"\0\1\2\r\n\r\n", b"POST /caption HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n"):
        with socket.create_connection((parts.host, parts.port), timeout=20) as connection:
            connection.sendall(sent)
            assert b" 400 " in connection.recv(1000)
    assert service.client.get("/health").status_code == 200


def test_joined_answers_are_those_of_one_by_one(service, predict, pictures):
    questions = list(itertools.product(("caption", "match", "encode_text_ids"), range(6)))

    def ask(question):
        name, number = question
        length = number + 1
        instance = {
            "caption": {"image_bytes": b64(pictures[number])},
            "match": {"image_bytes": b64(pictures[number]), "text": TEXTS[number]},
            "encode_text_ids": {"token_ids": [2, *[4 + number] * length], "token_mask": [True] * (length + 1)},
        }[name]
        answer = predict(name, instances=[instance])
        assert answer.status_code == 200, answer.text
        return answer.json()["predictions"][0]

    alone = [ask(question) for question in questions]
    before = service.metric("mmfusion_batch_rows_sum"), service.metric("mmfusion_batch_rows_count")
    with ThreadPoolExecutor(len(questions)) as threads:
        for _ in range(5):
            for expected, found in zip(alone, threads.map(ask, questions), strict=True):
                if isinstance(expected, list):
                    np.testing.assert_allclose(found, expected, atol=1e-5)
                    continue
                assert found.keys() == expected.keys() and found.get("caption") == expected.get("caption")
                for key in set(expected) - {"caption"}:
                    assert found[key] == pytest.approx(expected[key], abs=1e-5)
    rows = service.metric("mmfusion_batch_rows_sum") - before[0]
    calls = service.metric("mmfusion_batch_rows_count") - before[1]
    assert rows == 5 * len(questions) and calls < rows / 2, "they were joined"


def test_a_spoilt_picture_in_a_joined_batch_fails_alone(service, predict, predictor, pictures):
    cut = pictures[3][: len(pictures[3]) // 2]  # Its header is fine.
    expected = predictor.encode_image(pictures)
    contents = [pictures[0], cut, pictures[1], cut, pictures[2], pictures[4], pictures[5]]
    places = [0, None, 1, None, 2, 4, 5]

    def ask(content):
        return predict("encode_image", instances=[b64(content)])

    with ThreadPoolExecutor(len(contents)) as threads:
        for _ in range(5):
            before = service.metric('mmfusion_batch_rows_count{signature="encode_image"}')
            answers = list(threads.map(ask, contents))
            for place, answer in zip(places, answers, strict=True):
                if place is None:
                    assert answer.status_code == 400
                    assert "not a readable image [instances[0]: image_bytes]" in answer.json()["error"]
                else:
                    np.testing.assert_allclose(answer.json()["predictions"][0], expected[place], atol=1e-5)
    assert service.metric('mmfusion_batch_rows_count{signature="encode_image"}') - before < len(contents), "they were joined"


def test_in_one_request_the_row_to_blame_is_named(predict, pictures):
    cut = pictures[3][: len(pictures[3]) // 2]
    answer = predict("encode_image", instances=[b64(pictures[0]), b64(cut), b64(pictures[1])])
    assert answer.status_code == 400 and "[instances[1]: image_bytes]" in answer.json()["error"]
    ids = [{"token_ids": [4], "token_mask": [True]}, {"token_ids": [-1], "token_mask": [True]}]
    answer = predict("encode_text_ids", instances=ids)
    assert answer.status_code == 400 and "[instances[1]: token_ids and token_mask]" in answer.json()["error"]


def test_the_metrics_count(service, predict):
    predict("encode_text", instances=["a", "b"])
    start = 'mmfusion_requests_total{route="/v1/models/{name}:{verb}",status="200"}'
    before, rows = service.metric(start), service.metric('mmfusion_batch_rows_sum{signature="encode_text"}')
    predict("encode_text", instances=["a", "b"])
    service.client.get("/a/made/up/address")
    assert service.metric(start) == before + 1
    assert service.metric('mmfusion_batch_rows_sum{signature="encode_text"}') == rows + 2
    text = service.client.get("/metrics").text
    assert "/a/made/up/address" not in text and 'route="other",status="404"' in text
    for name in (
        "mmfusion_request_seconds_bucket",
        'mmfusion_queue_rows{signature="encode_text"} 0.0',
        "process_resident_memory_bytes",
    ):
        assert name in text


def test_fuzzed_requests_do_not_hurt(service, predict, pictures, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from serving_fuzz import is_fine, spoilt_requests

    def send(request):
        with_length = httpx.Request(request.method, service.address + request.path, headers=request.headers, content=request.body)
        answer = service.client.send(with_length)
        return is_fine(request, answer.status_code, answer.content), answer.status_code

    requests = spoilt_requests(0, "untrained", pictures)
    before = predict("encode_text", instances=["a dog"]).json()
    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(send, itertools.islice(requests, 200)))
        start = service.memory()
        outcomes += threads.map(send, itertools.islice(requests, 400))
    assert not [fault for fault, _ in outcomes if fault]
    statuses = {status for _, status in outcomes}
    assert {200, 400, 404, 405} <= statuses
    assert service.memory() - start < 48, "MiB in 400 requests"
    assert predict("encode_text", instances=["a dog"]).json() == before


def test_a_large_picture_within_the_limit_is_seen(service, predictor):
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 2000), (200, 30, 30)).save(buffer, "JPEG")
    answer = service.client.post("/encode_image", content=buffer.getvalue(), headers={"content-type": "image/jpeg"})
    np.testing.assert_allclose(answer.json()["embedding"], predictor.encode_image([buffer.getvalue()])[0], atol=1e-4)
    assert json.loads(answer.text)["embedding"]
