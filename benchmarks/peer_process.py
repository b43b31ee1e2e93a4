"""A peer in a process of its own, that answers lines of JSON and waits while ours runs: both ends of the line.

The peer's end needs NumPy and torch alone, so that its Python may be another one with packages of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import Seconds, Timing

Methods = dict[str, Callable[[], Any]]
"""What a peer can be asked, by name; each gives a tensor."""


class Peer:
    """Our end of the line.

    Args:
        script: The peer's script, which calls `answer`.
        *arguments: Its arguments.
        python: Its Python. Default: this one.
    """

    def __init__(self, script: Path, *arguments: str, python: str | None = None) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [python or sys.executable, str(script), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.name = self._read()["ready"]
        self.results: dict[str, Any] = {}

    def ask(self, method: str) -> Seconds:
        """A round of the peer's; what it gave is in `results`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"method": method}) + "\n")
        self.process.stdin.flush()
        answer = self._read()
        self.results[method] = answer["result"]
        return Seconds(answer["wall"], answer["processor"])

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                if isinstance(found := json.loads(line), dict):
                    return found
        raise SystemExit(f"error: the peer ended with status {self.process.wait()}")


@contextlib.contextmanager
def peer_of(script: Path, *arguments: str, python: str | None = None) -> Iterator[Peer]:
    """The peer, until it is not needed any more."""
    peer = Peer(script, *arguments, python=python)
    try:
        yield peer
    finally:
        peer.process.kill()
        peer.process.wait()


def ratio_range(own: Timing, their: Timing) -> list[float]:
    """The lowest and the highest ratio of single rounds."""
    ratios = [theirs.wall / ours.wall for ours, theirs in zip(own.rounds, their.rounds, strict=True)]
    return [round(min(ratios), 2), round(max(ratios), 2)]


def has_transformers() -> bool:
    """Whether this Python can run transformers' models."""
    import importlib.util

    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def write_checkpoint(folder: Path, config: Any, state: dict[str, Any], images: Any) -> None:
    """The peer's weights and pictures ``float[B, 3, H, W]``, for ours: config.json, model.safetensors, images.npy."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
    np.save(folder / "images.npy", images.permute(0, 2, 3, 1).numpy())
    save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, folder / "model.safetensors")


def answer(methods: Methods, name: str) -> None:
    """The peer's end: says that it is ready, and answers until there is nothing more to read.

    It reads ``{"method": name}`` and writes ``{"wall": s, "processor": s, "result": [...]}``.
    """
    import torch

    print(json.dumps({"ready": name, "methods": sorted(methods)}), flush=True)
    for line in sys.stdin:
        with torch.inference_mode():
            wall, processor = time.perf_counter(), time.process_time()
            result = methods[json.loads(line)["method"]]()
            taken = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        print(json.dumps({**taken, "result": result.tolist()}), flush=True)
