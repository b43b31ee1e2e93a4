"""Reads the bodies of requests, none larger than allowed, and not more at a time than memory holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from mmfusion.serving.limits import Limits
from mmfusion.serving.request_error import RequestError

_AT_A_TIME = 16
"""So many of the largest bodies are held at a time."""


class Bodies:
    """What is being read and held, of all requests together.

    Args:
        limits: How large a body may be, and how long it may take to arrive.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0

    @asynccontextmanager
    async def of(self, request: Request) -> AsyncIterator[bytes]:
        """A request's body, held while this is open.

        Args:
            request: The request.

        Raises:
            RequestError: If the body is too large (413), too slow (408), or there is no room for it now (503).
        """
        parts: list[bytes] = []
        try:
            try:
                await asyncio.wait_for(self._read(request, parts), self.limits.timeout)
            except asyncio.TimeoutError:
                expected, found = f"within {self.limits.timeout:g} s", f"{sum(map(len, parts)):,} bytes"
                raise RequestError("the body did not arrive in time", status=408, expected=expected, found=found) from None
            yield b"".join(parts)
        finally:
            self.held -= sum(map(len, parts))

    async def _read(self, request: Request, parts: list[bytes]) -> None:
        largest, size = self.limits.max_body, 0
        declared = request.headers.get("content-length", "")
        expected = int(declared) if declared.isascii() and declared.isdigit() else 0
        async for part in request.stream():
            size += len(part)
            # Who is refused while sending may see a broken connection instead of the answer: some more is read, and thrown away.
            if max(size, expected) <= largest:
                parts.append(part)
                self.held += len(part)
            elif size > 4 * largest:
                break
            if self.held > _AT_A_TIME * largest:
                raise RequestError("too many requests at a time", status=503, retry_after=1, fix="ask again later")
        if max(size, expected) > largest:
            raise RequestError(
                "the body is too large", status=413, where="body", expected=f"at most {largest:,} bytes",
                found=f"{max(size, expected):,}",
            )  # fmt: skip
