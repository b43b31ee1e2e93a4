"""Runs a service until it is told to stop."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from mmfusion.errors import ConfigError
from mmfusion.export import load
from mmfusion.export.saved_model import DESCRIPTION
from mmfusion.serving.app import build_app
from mmfusion.serving.batcher import Batching
from mmfusion.serving.limits import Limits
from mmfusion.serving.metrics import Metrics
from mmfusion.serving.served_model import ServedModel

_BACKLOG = 1024


def serve(
    path: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8501,
    name: str | None = None,
    limits: Limits | None = None,
    batching: Batching | None = None,
    precision: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serves a run or an export over HTTP, until SIGTERM or SIGINT; what is under way then is answered first.

    Args:
        path: The run folder or the export.
        host: Address to listen at. Default ``"127.0.0.1"``: this machine alone.
        port: Port to listen at; 0 takes a free one, and says which. Default 8501, TensorFlow Serving's.
        name: The model's name in addresses. Default: the folder's.
        limits: How much it takes on. Default `Limits()`.
        batching: How rows are joined. Default `Batching()`.
        precision: Of a run, the number format to compute in, see `mmfusion.load`. Default: as it was trained.
        say: Is told where it listens, and when it is ready. Default `print`.

    Raises:
        ConfigError: If the name cannot stand in an address, or the port is taken.
        ExportError: If there is nothing to serve, or a signature fails on a drawn picture.
    """
    limits, batching = limits or Limits(), batching or Batching()
    path = Path(path)
    name = model_name(path) if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ConfigError("a model's name stands in addresses", where="name", expected="letters, digits, _ . -", found=repr(name))
    listening = _listen(host, port)
    try:
        model = ServedModel(load(path, precision=precision), name=name, limits=limits, batching=batching, metrics=Metrics())
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        failures: list[Exception] = []

        def ready(error: Exception | None) -> None:
            if error is None:
                say(f"ready: {address}/v1/models/{name}")
            else:
                failures.append(error)
                server.should_exit = True

        app = build_app(model, ready=ready)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                lifespan="on",
                server_header=False,
                backlog=_BACKLOG,
                timeout_graceful_shutdown=int(limits.timeout) + 5,
            )
        )
        say(f"serving {name} ({', '.join(model.signatures)}) at {address}")
        # uvicorn stops in good order, and then raises the signal again for whoever else listens: that is nobody.
        before = {number: signal.signal(number, _nothing) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            server.run(sockets=[listening])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    finally:
        listening.close()
    if failures:
        raise failures[0]
    say("stopped")


def _nothing(number: int, frame: object) -> None:
    return None


def model_name(path: Path) -> str:
    """What to call a model: an export's recorded name, else its folder's; what cannot stand in an address becomes ``-``.

    Args:
        path: The run folder or the export.

    Example:
        >>> model_name(Path("runs/my run"))
        'my-run'
    """
    name = path.resolve().name
    if (path / DESCRIPTION).is_file():
        name = json.loads((path / DESCRIPTION).read_text(encoding="utf-8")).get("name") or name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-") or "model"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, UnicodeError) as error:
        found = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            "cannot listen there", where=f"{host}:{port}", found=found, fix="name another --host or --port"
        ) from error
    return listening
