"""What a service counts, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


class Metrics:
    r"""Counters of one service, in a registry of their own.

    - ``mmfusion_requests_total{route, status}``
    - ``mmfusion_request_seconds{route}``, a histogram from the first byte read to the last byte sent
    - ``mmfusion_batch_rows{signature}``, a histogram of the rows that a call answers, padding not counted
    - ``mmfusion_queue_rows{signature}``, rows that wait now

    Example:
        >>> metrics = Metrics()
        >>> metrics.requests.labels("/health", "200").inc()
        >>> "mmfusion_requests_total{route=\"/health\",status=\"200\"} 1.0" in metrics.text().decode()
        True
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("mmfusion_requests", "Requests answered.", ("route", "status"), registry=self.registry)
        self.seconds = Histogram(
            "mmfusion_request_seconds", "Seconds of a request.", ("route",), buckets=_SECONDS, registry=self.registry
        )
        self.rows = Histogram("mmfusion_batch_rows", "Rows of a call.", ("signature",), buckets=_ROWS, registry=self.registry)
        self.queue = Gauge("mmfusion_queue_rows", "Rows that wait.", ("signature",), registry=self.registry)
        ProcessCollector(registry=self.registry)

    def watch(self, signature: str, waiting: Callable[[], int]) -> Callable[[int], None]:
        """Counts a signature's calls and its queue from now on.

        Args:
            signature: Its name.
            waiting: Says how many rows wait.

        Returns:
            What to tell the rows of each call.
        """
        self.queue.labels(signature).set_function(waiting)
        return self.rows.labels(signature).observe

    def text(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self.registry)

    def counting(self, app: Any) -> Any:
        """An ASGI application that counts the requests of another.

        Args:
            app: The other.
        """

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            start, status = time.perf_counter(), "500"

            async def watched(message: Any) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = str(message["status"])
                await send(message)

            try:
                await app(scope, receive, watched)
            finally:
                # The pattern, not the path: what people make up must not become a time series each.
                route = getattr(scope.get("route"), "path", "other")
                self.requests.labels(route, status).inc()
                self.seconds.labels(route).observe(time.perf_counter() - start)

        return counted
