"""``mmfusion serve``: a model over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmfusion.cli.precision import PrecisionOption, word_of

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


def serve(
    model: Annotated[Path, typer.Argument(help="An export or a run folder.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every one of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8501,
    name: Annotated[str | None, typer.Option(help="The model's name in addresses. Default: the export's.")] = None,
    batching: Annotated[bool, typer.Option(help="Join requests that wait to one call of the model.")] = True,
    max_batch: Annotated[int, typer.Option(min=1, max=1024, help="Rows of a call at most.")] = 32,
    max_wait_ms: Annotated[float, typer.Option(min=0, max=1000, help="How long a call waits for more rows at most.")] = 5.0,
    worker_threads: Annotated[int, typer.Option(min=1, max=64, help="Threads that call the model.")] = 1,
    max_queue: Annotated[int, typer.Option(min=1, help="Rows that may wait, a signature; more are refused.")] = 256,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Size of a request, in MB.")] = 16.0,
    max_instances: Annotated[int, typer.Option(min=1, help="Rows of a request.")] = 64,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Pixels of a picture, in millions.")] = 50.0,
    max_text: Annotated[int, typer.Option(min=1, help="Characters of a text.")] = 10_000,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds that a request may take.")] = 30.0,
    precision: PrecisionOption = None,
) -> None:
    """Serve a model over HTTP, as TensorFlow Serving does and with plain routes; Ctrl-C stops it."""
    from importlib.util import find_spec

    from mmfusion.cli.environment import quiet_tensorflow
    from mmfusion.errors import ConfigError

    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        raise ConfigError(
            "serving needs packages that are not installed",
            found=f"no {' and no '.join(missing)}",
            fix='pip install "mmfusion[serve]"',
        )
    quiet_tensorflow()
    from mmfusion.serving import Batching, Limits
    from mmfusion.serving import serve as run

    limits = Limits(
        max_body=int(max_body_mb * 1e6),
        max_instances=max_instances,
        max_pixels=int(max_megapixels * 1e6),
        max_text=max_text,
        timeout=timeout,
        max_queue=max_queue,
    )
    options = Batching(max_batch=max_batch, max_wait=max_wait_ms / 1000, join=batching, workers=worker_threads)
    run(model, host=host, port=port, name=name, limits=limits, batching=options, precision=word_of(precision), say=_say)


def _say(line: str) -> None:
    # Whoever starts a service reads this from a pipe, and waits for it.
    typer.echo(line)
    import sys

    sys.stdout.flush()
