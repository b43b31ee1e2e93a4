"""A load generator in a process of its own: so many clients, each with a connection that it keeps, for so many seconds.

    python benchmarks/serving_load.py REQUESTS.json

REQUESTS.json holds `address`, `path`, `clients`, `seconds` and `requests`, a list of bodies with the answers that are expected.
Every answer is compared: the same words, numbers within `tolerance`. One JSON object is printed.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class Connection:
    """A connection that is kept, with as little between us and the socket as can be: the generator shares the cores.

    Args:
        address: ``http://host:port``.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer.

        Raises:
            OSError, asyncio.IncompleteReadError: If the connection broke.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection(self.host, self.port, limit=2**20)
        reader, writer = self._streams
        lines = [f"{method} {path} HTTP/1.1", f"host: {self.host}", f"content-length: {len(body)}"]
        lines += [f"{key}: {value}" for key, value in (headers or {}).items()]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        try:
            await writer.drain()
        except ConnectionError:
            pass  # An answer may be there all the same.
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        found = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head[1:]) if value}
        content = await reader.readexactly(int(found.get("content-length", 0)))
        if found.get("connection") == "close":
            await self.close()
        return int(head[0].split()[1]), found, content

    async def close(self) -> None:
        """Closes it; the next question opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def close_to(expected: Any, found: Any, tolerance: float) -> bool:
    """Whether two values of JSON are the same, numbers within a tolerance."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and set(expected) == set(found) and all(
            close_to(value, found[key], tolerance) for key, value in expected.items()
        )  # fmt: skip
    if isinstance(expected, list):
        return isinstance(found, list) and len(expected) == len(found) and all(
            close_to(one, other, tolerance) for one, other in zip(expected, found, strict=True)
        )  # fmt: skip
    if isinstance(expected, float):
        return isinstance(found, int | float) and math.isclose(expected, found, rel_tol=tolerance, abs_tol=tolerance)
    return type(expected) is type(found) and expected == found


async def load(plan: dict[str, Any]) -> dict[str, Any]:
    """Asks as planned; what it says counts requests that were sent, answered, answered otherwise than expected, and lost."""
    questions = [(row["body"].encode(), row["answer"]) for row in plan["requests"]]
    counts = {"sent": 0, "answered": 0, "wrong": 0, "refused": 0, "lost": 0}
    seconds: list[float] = []
    first_wrong: list[str] = []
    start = time.perf_counter()
    end = start + plan["seconds"]

    async def client(number: int) -> None:
        connection = Connection(plan["address"])
        turn = number
        while time.perf_counter() < end:
            body, expected = questions[turn % len(questions)]
            turn += plan["clients"]
            counts["sent"] += 1
            begin = time.perf_counter()
            try:
                status, _, content = await connection.ask("POST", plan["path"], body)
            except (OSError, asyncio.IncompleteReadError):
                counts["lost"] += 1
                await connection.close()
                continue
            seconds.append(time.perf_counter() - begin)
            if status == 503:
                counts["refused"] += 1
            elif status == 200 and close_to(expected, json.loads(content), plan["tolerance"]):
                counts["answered"] += 1
            else:
                counts["wrong"] += 1
                first_wrong.append(content[:300].decode("utf-8", "replace"))
        await connection.close()

    await asyncio.gather(*(client(number) for number in range(plan["clients"])))
    passed = time.perf_counter() - start
    seconds.sort()

    def percentile(share: float) -> float:
        return seconds[min(len(seconds) - 1, math.ceil(share * len(seconds)) - 1)] if seconds else math.nan

    return {
        **counts,
        "seconds": passed,
        "rate": counts["answered"] / passed,
        "p50_ms": 1000 * percentile(0.5),
        "p99_ms": 1000 * percentile(0.99),
        "first_wrong": first_wrong[:1],
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))))
