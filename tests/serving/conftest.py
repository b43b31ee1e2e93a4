"""A run that never trained, its export, services over both in processes of their own, and a client."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import keras
import numpy as np
import pytest
import tensorflow as tf
from untrained import untrained_run

import mmfusion
from mmfusion.export import Predictor, export_model, load
from mmfusion.training import load_run


class Service:
    """``mmfusion serve`` in a process of its own."""

    def __init__(self, folder: Path, log: Path, *options: object) -> None:
        command = [sys.executable, "-m", "mmfusion", "serve", str(folder), "--port", "0", *map(str, options)]
        root = str(Path(mmfusion.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        self.ready = self.process.stdout.readline()
        assert self.ready.startswith("ready: "), (self.said, self.ready, log.read_text()[-2000:])
        self.address = self.said.split()[-1]
        self.client = httpx.Client(base_url=self.address, timeout=60)

    def memory(self) -> float:
        """MiB that the process holds."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def metric(self, start: str) -> float:
        """The sum of the metrics whose line starts so."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(start))

    def stop(self, number: signal.Signals) -> None:
        self.client.close()
        self.process.send_signal(number)
        assert self.process.wait(60) == 0, self.log.read_text()[-2000:]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="session")
def run_folder(folder) -> Path:
    # Some draws of weights (2, say) enlarge the rounding between batches of different sizes to 1e-4, by the model alone.
    keras.utils.set_random_seed(7)
    return untrained_run(folder / "run")


@pytest.fixture(scope="session")
def export(folder, run_folder) -> Path:
    return export_model(load_run(run_folder), folder / "an export")


@pytest.fixture(scope="session")
def predictor(export) -> Predictor:
    """The export, loaded in this process: what the answers are compared with."""
    return load(export)


@pytest.fixture(scope="session")
def service(folder, export) -> Iterator[Service]:
    """Requests are joined, generously: a call waits up to 200 ms for as many as there were lately."""
    options = ("--max-batch", 16, "--max-wait-ms", 200, "--max-instances", 8, "--max-body-mb", 12, "--max-megapixels", 20)
    one = Service(export, folder / "service.log", *options)
    yield one
    one.stop(signal.SIGINT)


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """Six, PNG and JPEG, of several sizes."""
    random = np.random.default_rng(0)
    sizes = ((24, 32), (40, 30), (9, 70), (64, 64), (1, 1), (30, 50))
    return [
        (tf.io.encode_jpeg if number % 2 else tf.io.encode_png)(
            tf.constant(random.integers(0, 256, (*size, 3)), tf.uint8)
        ).numpy()
        for number, size in enumerate(sizes)
    ]


@pytest.fixture(scope="session")
def predict(service) -> Callable[..., httpx.Response]:
    """Asks TensorFlow Serving's way: ``predict("caption", instances=[…])``."""

    def ask(signature: str | None = None, **content: Any) -> httpx.Response:
        if signature is not None:
            content["signature_name"] = signature
        return service.client.post("/v1/models/untrained:predict", content=json.dumps(content))

    return ask


def b64(content: bytes) -> dict[str, str]:
    """Bytes as JSON holds them."""
    return {"b64": base64.b64encode(content).decode()}
