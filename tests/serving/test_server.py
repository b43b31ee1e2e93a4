"""How a service starts, over a run as well, what it does with more than it can, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from serving.conftest import Service, b64
from starlette.requests import Request

from mmfusion.cli.main import run
from mmfusion.errors import ConfigError
from mmfusion.serving import Batching, Limits, Metrics, RequestError, ServedModel, build_app
from mmfusion.serving.bodies import Bodies


@pytest.fixture(scope="module")
def plain_service(folder, run_folder):
    """Over the run, one by one, with a short queue."""
    one = Service(run_folder, folder / "run.log", "--no-batching", "--max-queue", 8, "--max-instances", 8, "--name", "my.run-1")
    yield one
    one.process.kill()
    one.process.wait()


def test_a_run_is_served_like_its_export(plain_service, predictor, pictures):
    assert plain_service.ready.strip().endswith("/v1/models/my.run-1")
    answer = plain_service.client.post("/v1/models/my.run-1:predict", json={"inputs": [b64(picture) for picture in pictures]})
    np.testing.assert_allclose(answer.json()["outputs"], predictor.encode_image(pictures), atol=1e-5)


def test_metadata_of_a_run_are_those_of_its_export_but_for_names_of_tensors(plain_service, service):
    def definitions(one, name):
        return one.client.get(f"/v1/models/{name}/metadata").json()["metadata"]["signature_def"]["signature_def"]

    def without_names(content):
        if isinstance(content, dict):
            return {key: without_names(value) for key, value in content.items() if not (key == "name" and "dtype" in content)}
        return content

    of_run, of_export = definitions(plain_service, "my.run-1"), definitions(service, "untrained")
    # An export also names the one that is asked where none is named.
    assert without_names(of_export.pop("serving_default")) == without_names(of_export["encode_image"])
    assert without_names(of_run) == without_names(of_export)


def test_without_joining_each_request_is_a_call_and_beyond_the_queue_is_told_to_come_back(plain_service, pictures):
    body = json.dumps({"signature_name": "caption", "instances": [b64(picture) for picture in pictures]})
    expected = plain_service.client.post("/v1/models/my.run-1:predict", content=body).json()
    start = 'mmfusion_batch_rows_{}{{signature="caption"}}'
    before = [plain_service.metric(start.format(kind)) for kind in ("sum", "count")]

    def ask(number):
        return plain_service.client.post("/v1/models/my.run-1:predict", content=body)

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(ask, range(36)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert answer.headers["retry-after"] == "1" and "too many requests wait" in answer.json()["error"]
        else:
            found, wanted = answer.json()["predictions"], expected["predictions"]
            assert [row["caption"] for row in found] == [row["caption"] for row in wanted]
    rows, calls = (plain_service.metric(start.format(kind)) - value for kind, value in zip(("sum", "count"), before, strict=True))
    assert calls == statuses.count(200) and rows == 6 * calls
    assert plain_service.client.post("/v1/models/my.run-1:predict", content=body).json() == expected


def test_told_to_stop_it_answers_what_is_under_way_and_ends_with_0(plain_service, pictures):
    parts = httpx.URL(plain_service.address)
    body = json.dumps({"signature_name": "caption", "instances": [b64(pictures[0])]}).encode()
    expected = plain_service.client.post("/v1/models/my.run-1:predict", content=body).json()
    head = f"POST /v1/models/my.run-1:predict HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((parts.host, parts.port), timeout=30) as connection:
        connection.sendall(head + body[:50])
        time.sleep(0.3)
        plain_service.process.send_signal(signal.SIGTERM)
        for _ in range(600):
            try:
                socket.create_connection((parts.host, parts.port), timeout=5).close()
            except ConnectionRefusedError:
                break
            time.sleep(0.02)
        else:
            raise AssertionError("it still accepts connections")
        assert plain_service.process.poll() is None
        connection.sendall(body[50:])
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and json.loads(content) == expected
    assert plain_service.process.wait(60) == 0
    assert plain_service.process.stdout.read() == "stopped\n"
    assert "Traceback" not in plain_service.log.read_text()


def test_too_slow_an_answer_is_a_504_and_the_next_is_answered(predictor, pictures):
    async def scenario():
        limits = Limits(timeout=0.002)
        model = ServedModel(predictor, name="m", limits=limits, batching=Batching(), metrics=Metrics())
        app = build_app(model)
        body = {"signature_name": "caption", "instances": [b64(picture) for picture in pictures]}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://m") as client:
            cold = await client.post("/v1/models/m:predict", json=body)
            assert cold.status_code == 503 and cold.headers["retry-after"] == "1"
            assert (await client.get("/ready")).status_code == 503 and (await client.get("/health")).status_code == 200
            assert (await client.get("/v1/models/m")).json()["model_version_status"][0]["state"] == "LOADING"
            await model.start()
            late = await client.post("/v1/models/m:predict", json=body)
            assert late.status_code == 504 and "expected within 0.002 s" in late.json()["error"]
            model.limits = Limits()
            good = await client.post("/v1/models/m:predict", json=body)
        assert [row["caption"] for row in good.json()["predictions"]] == [row.text for row in predictor.caption(pictures)]
        await model.close()

    asyncio.run(scenario())


def test_bodies_that_do_not_come_or_do_not_fit_give_back_their_room():
    async def read(bodies: Bodies, *parts: bytes, ends: bool = True) -> int:
        waiting = list(parts)

        async def receive():
            if not waiting and not ends:
                await asyncio.sleep(60)
            part = waiting.pop(0) if waiting else b""
            return {"type": "http.request", "body": part, "more_body": bool(waiting) or not ends}

        async with bodies.of(Request({"type": "http", "method": "POST", "headers": []}, receive)) as body:
            assert bodies.held == len(body)
            return len(body)

    async def scenario():
        bodies = Bodies(Limits(max_body=100, timeout=0.2))
        assert await read(bodies, b"x" * 60, b"y" * 40) == 100
        for status, parts, ends in (
            (408, [b"x" * 10], False),
            (413, [b"x" * 60, b"x" * 41], True),
            (413, [b"x" * 99] * 9, False),
        ):
            with pytest.raises(RequestError) as error:
                await read(bodies, *parts, ends=ends)
            assert error.value.status == status
            assert bodies.held == 0
        async with contextlib.AsyncExitStack() as held:
            for _ in range(16):
                bodies.held += 100
            held.callback(setattr, bodies, "held", 0)
            with pytest.raises(RequestError, match="too many requests at a time") as error:
                await read(bodies, b"x")
            assert error.value.status == 503 and bodies.held == 1600

    asyncio.run(scenario())


def told(capsys, *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        run(["serve", *map(str, arguments)])
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and not out
    return lines[0]


def test_bad_arguments_are_one_line(capsys, export, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen there [127.0.0.1:{port}]" in told(capsys, export, "--port", port)
    assert "neither a run nor an export" in told(capsys, tmp_path / "nothing", "--port", 0)
    assert "a model's name stands in addresses [name]" in told(capsys, export, "--port", 0, "--name", "a/b")
    assert "the queue is shorter than a request may be" in told(capsys, export, "--max-queue", 3)
    assert "--port" in told(capsys, export, "--port", 99999)
    assert "--max-batch" in told(capsys, export, "--max-batch", 0)
    with pytest.raises(ConfigError, match="a limit must be above 0"):
        Limits(timeout=0.0)


def test_without_the_extra_it_says_what_to_install(capsys, monkeypatch, export):
    # As where these were never installed.
    for name in ("fastapi", "uvicorn"):
        monkeypatch.setitem(sys.modules, name, None)
    assert told(capsys, export) == (
        "error: serving needs packages that are not installed: found no fastapi and no uvicorn; pip install \"mmfusion[serve]\""
    )  # fmt: skip


def test_help_loads_neither_tensorflow_nor_the_framework():
    program = (
        "import sys, mmfusion.cli.main; print(*{'tensorflow', 'fastapi', 'uvicorn', 'prometheus_client'} & set(sys.modules))"
    )
    assert not subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
