"""How much a service takes on."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mmfusion.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """What a request may ask for at most, and how many may wait.

    Args:
        max_body: Bytes of a request's body. Default 16 MiB.
        max_instances: Rows of a request. Default 64.
        max_pixels: Pixels of a picture, all frames together, and of the pictures that are decoded in one batch. A picture takes
            some 15 bytes a pixel while it is resized. Default 50 million.
        max_text: Characters of a text. Default 10,000.
        timeout: Seconds that a request may take. Default 30.
        max_queue: Rows that may wait, a signature; beyond it requests are refused. Default 256.

    Raises:
        ConfigError: If one of them is not above 0, or a request's rows would not fit the queue.

    Example:
        >>> Limits(max_instances=8).max_instances
        8
    """

    max_body: int = 16 * 2**20
    max_instances: int = 64
    max_pixels: int = 50_000_000
    max_text: int = 10_000
    timeout: float = 30.0
    max_queue: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ConfigError("a limit must be above 0", where=field.name, expected="above 0", found=value)
        if self.max_queue < self.max_instances:
            raise ConfigError(
                "the queue is shorter than a request may be", where="max_queue", expected=f"at least {self.max_instances}",
                found=self.max_queue, fix="raise it, or lower max_instances",
            )  # fmt: skip
