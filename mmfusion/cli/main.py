"""The command ``mmfusion``: its table of commands, and how errors are told."""

from __future__ import annotations

import os
import sys

import typer

from mmfusion.cli import caption, config, data, evaluate, export, search, train, tune, verify
from mmfusion.errors import MMFusionError
from mmfusion.version import __version__

app = typer.Typer(
    name="mmfusion",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Images and text joined by attention: train, evaluate, caption, search, tune, export.",
)
app.command()(train.train)
app.command()(evaluate.evaluate)
app.command()(caption.caption)
app.command()(search.search)
app.command()(tune.tune)
app.command()(export.export)
app.command()(verify.verify)
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mmfusion {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks."),
) -> None:
    """Images and text joined by attention: train, evaluate, caption, search, tune, export."""
    if debug:
        os.environ["MMFUSION_DEBUG"] = "1"


def run(arguments: list[str] | None = None) -> None:
    """Runs the command line; errors that a person can act on are one line and exit status 2.

    Args:
        arguments: What follows ``mmfusion``. Default: the process's own arguments.
    """
    try:
        app(args=arguments)
    except MMFusionError as error:
        _fail(f"error: {error}", 2)
    except KeyboardInterrupt:
        _fail("stopped; the same command again goes on where it was", 130)
    except BrokenPipeError:
        # Whoever read our output has left (as `head` does): that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0][:300]
        _fail(f"error: unexpected {type(error).__name__}: {line} (mmfusion --debug … shows where)", 1)


def _fail(message: str, status: int) -> None:
    if os.environ.get("MMFUSION_DEBUG"):
        import traceback

        traceback.print_exc()
    typer.echo(message, err=True)
    raise SystemExit(status)
