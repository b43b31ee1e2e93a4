"""The routes of a service."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mmfusion.errors import MMFusionError
from mmfusion.serving.bodies import Bodies
from mmfusion.serving.page import SAFE, page
from mmfusion.serving.plain import ROUTES, read_question, rows_of
from mmfusion.serving.request_error import RequestError
from mmfusion.serving.served_model import ServedModel
from mmfusion.serving.wire import answer, json_value, read_predict, read_rows

_LARGE = 65536
"""Bytes from which on reading and writing JSON is done beside the event loop."""

_LOG = logging.getLogger("mmfusion.serving")

Result = TypeVar("Result")


def build_app(model: ServedModel, *, ready: Callable[[Exception | None], None] = lambda error: None) -> FastAPI:
    """The service over a model, as an ASGI application; it warms the model up when it starts.

    Args:
        model: The model.
        ready: Is called when the model is warm, or with the error that it met. Default: nothing happens.

    Returns:
        The application: TensorFlow Serving's routes below ``/v1/models``, ``/caption`` and its like for people, ``/``,
        ``/health``, ``/ready`` and ``/metrics``. Every error is ``{"error": …}`` with a status that says whose fault it is.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(_warm_up(model, ready))
        yield
        model.state = "UNLOADING"
        await warming
        await model.close()

    app = FastAPI(title=f"mmfusion: {model.name}", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    routes = _Routes(model)
    for path in ("/v1/models/{name}", "/v1/models/{name}/versions/{version}"):
        app.add_api_route(path, routes.status, methods=["GET"])
        app.add_api_route(path + "/metadata", routes.metadata, methods=["GET"])
        app.add_api_route(path + ":{verb}", routes.predict, methods=["POST"])
    for name in ROUTES:
        app.add_api_route(f"/{name}", routes.plain, methods=["POST"])
    for name in ("health", "ready", "metrics"):
        app.add_api_route(f"/{name}", getattr(routes, name), methods=["GET"])
    app.add_api_route("/", routes.page, methods=["GET"])
    app.add_exception_handler(MMFusionError, _refused)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(model.metrics.counting)  # type: ignore[arg-type]
    return app


async def _warm_up(model: ServedModel, ready: Callable[[Exception | None], None]) -> None:
    try:
        await model.start()
    except Exception as error:
        ready(error)
    else:
        if model.state == "AVAILABLE":
            ready(None)


class _Routes:
    """The endpoints."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.bodies = Bodies(model.limits)
        self._page = page(model)

    async def predict(self, request: Request) -> Response:
        """TensorFlow Serving's predict."""
        self._check_name(request)
        verb = request.path_params["verb"]
        if verb != "predict":
            raise RequestError("these signatures predict alone", where="address", expected=":predict", found=f":{verb}"[:100])
        async with self.bodies.of(request) as body:
            return await self._in_time(self._predict(body))

    async def _predict(self, body: bytes) -> Response:
        model = self.model

        def read() -> Any:
            asked = read_predict(body)
            signature = model.signature(asked.signature_name)
            rows = read_rows(asked, signature, model.limits)
            where = "instances" if asked.by_rows else "rows"
            return asked.by_rows, where, signature, rows, model.check(signature, rows, where)

        by_rows, where, signature, rows, weights = await _aside(read, len(body))
        answers = await model.ask(signature, rows, weights, where)
        return await _aside(lambda: _json(answer(answers, by_rows=by_rows)), _bytes(answers))

    async def plain(self, request: Request) -> Response:
        """A person's question, by the name of its route."""
        name = request.url.path.strip("/")
        if name not in self.model.signatures:
            expected = " or ".join(f"/{known}" for known in ROUTES if known in self.model.signatures)
            raise RequestError(f"the model cannot {name.replace('_', ' ')}", status=404, expected=expected, found=f"/{name}")
        async with self.bodies.of(request) as body:
            return await self._in_time(self._plain(request, body, name))

    async def _plain(self, request: Request, body: bytes, name: str) -> Response:
        model, signature = self.model, self.model.signatures[name]
        question = await read_question(request, body, model.limits)

        def read() -> Any:
            rows, listed = rows_of(question, signature, model.limits)
            return rows, listed, model.check(signature, rows, "question")

        rows, listed, weights = await _aside(read, len(body))
        answers = await model.ask(signature, rows, weights, "question")

        def write() -> Response:
            plain = [{key: json_value(value, key) for key, value in row.items()} for row in answers]
            return _json({"answers": plain} if listed else plain[0])

        return await _aside(write, _bytes(answers))

    async def status(self, request: Request) -> Response:
        """TensorFlow Serving's status of a model."""
        self._check_name(request)
        told = {"version": "1", "state": self.model.state, "status": {"error_code": "OK", "error_message": ""}}
        return _json({"model_version_status": [told]})

    async def metadata(self, request: Request) -> Response:
        """TensorFlow Serving's description of the signatures."""
        self._check_name(request)
        return _json(self.model.metadata)

    async def health(self) -> Response:
        """Whether the process answers."""
        return _json({"status": "alive"})

    async def ready(self) -> Response:
        """Whether the model answers."""
        state = self.model.state
        return _json({"status": state}, 200 if state == "AVAILABLE" else 503)

    async def metrics(self) -> Response:
        """What was counted, for Prometheus."""
        return Response(self.model.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self) -> Response:
        """The page for people."""
        return Response(self._page, media_type="text/html; charset=utf-8", headers=SAFE)

    async def _in_time(self, work: Awaitable[Response]) -> Response:
        seconds = self.model.limits.timeout
        try:
            return await asyncio.wait_for(work, seconds)
        except asyncio.TimeoutError:
            raise RequestError("the answer took too long", status=504, expected=f"within {seconds:g} s") from None

    def _check_name(self, request: Request) -> None:
        name, version = request.path_params["name"], request.path_params.get("version", "1")
        if (name, version) != (self.model.name, "1"):
            expected = f"{self.model.name}, version 1"
            raise RequestError(
                "no such model", status=404, where="address", expected=expected, found=f"{name}, version {version}"[:200]
            )


async def _aside(work: Callable[[], Result], size: int) -> Result:
    """Does what may take long in a thread."""
    return await asyncio.to_thread(work) if size > _LARGE else work()


def _bytes(answers: list[dict[str, np.ndarray]]) -> int:
    # A row's text is no array.
    return sum(getattr(value, "nbytes", 0) for row in answers for value in row.values())


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content, ensure_ascii=False).encode(), status, headers, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        # Starlette's own: no such address, or another method.
        return _json({"error": f"{error.detail} [{request.method} {request.url.path[:200]}]"}, error.status_code, error.headers)  # type: ignore[arg-type]
    status, again = getattr(error, "status", 400), getattr(error, "retry_after", None)
    return _json({"error": str(error)}, status, None if again is None else {"retry-after": str(again)})


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _failed(request: Request, error: Exception) -> Response:
    _LOG.error("unexpected %s at %s: %s", type(error).__name__, request.url.path[:200], str(error)[:500])
    return _json({"error": f"unexpected {type(error).__name__}"}, 500)
