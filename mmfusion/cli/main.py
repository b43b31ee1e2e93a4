"""The command ``mmfusion``: its table of commands, and how errors are told."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from mmfusion.cli import (
    caption,
    check_serving,
    config,
    data,
    evaluate,
    export,
    locate,
    presets,
    search,
    serve,
    train,
    translate,
    tune,
    verify,
)
from mmfusion.errors import MMFusionError
from mmfusion.version import __version__

app = typer.Typer(
    name="mmfusion",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Images and text joined by attention: train, evaluate, caption, search, tune, export, serve.",
)


class Stopped(Exception):
    """Ctrl-C, with what to say about it."""


def _stoppable(command: Callable[..., Any]) -> Callable[..., Any]:
    # Typer's versions tell an interrupt each in their own way, or not at all: it never gets to see one.
    @functools.wraps(command)
    def stoppable(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except KeyboardInterrupt as stop:
            raise Stopped(str(stop) or "stopped") from None

    return stoppable


for _command in (
    train.train, evaluate.evaluate, caption.caption, translate.translate, search.search, tune.tune, export.export, verify.verify,
    presets.presets, locate.locate, serve.serve, check_serving.check_serving,
):  # fmt: skip
    app.command()(_stoppable(_command))
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
    """Images and text joined by attention: train, evaluate, caption, search, tune, export, serve."""
    if debug:
        os.environ["MMFUSION_DEBUG"] = "1"


def run(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line; errors that a person can act on are one line and exit status 2.

    Args:
        arguments: What follows ``mmfusion``. Default: the process's own arguments; the process then ends here.

    Raises:
        SystemExit: With the exit status.
    """
    status = _run(arguments)
    if status and arguments is None:
        _end_process(status)
    raise SystemExit(status)


def _run(arguments: list[str] | None) -> int:
    try:
        status = app(args=arguments, prog_name="mmfusion", standalone_mode=False)
    except MMFusionError as error:
        return _tell(f"error: {error}", 2)
    except (Stopped, KeyboardInterrupt, typer.Abort) as stop:
        return _tell(str(stop) or "stopped", 130)
    except BrokenPipeError:
        # Whoever read our output has left (as `head` does): that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if hasattr(error, "format_message"):
            return _tell_usage(error)
        line = (str(error).strip().splitlines() or [""])[0][:300]
        return _tell(f"error: unexpected {type(error).__name__}: {line} (mmfusion --debug … shows where)", 1)
    return status if isinstance(status, int) else 0


def _tell_usage(error: Any) -> int:
    # What Typer raises for a wrong command line; its own way of telling takes six lines.
    message = " ".join(error.format_message().split()).rstrip(".")
    if type(error).__name__ == "NoArgsIsHelpError" or not message:
        error.show()
        return int(error.exit_code)
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "mmfusion"
    return _tell(f"error: {message[:1].lower()}{message[1:]}; see {command} --help", int(error.exit_code))


def _tell(message: str, status: int) -> int:
    if os.environ.get("MMFUSION_DEBUG"):
        import traceback

        traceback.print_exc()
    typer.echo(message, err=True)
    return status


def _end_process(status: int) -> NoReturn:
    # A training that was stopped leaves threads of tf.data that wait for the interpreter while it waits for them: it would never
    # end. What others registered for the end is done (temporary folders go), and nothing else.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
