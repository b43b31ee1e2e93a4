"""What a service answers to a request that it cannot serve."""

from __future__ import annotations

from typing import Any

from mmfusion.errors import MMFusionError


class RequestError(MMFusionError):
    """A request that is refused, with the status of HTTP that says why.

    Args:
        what: What is wrong, as a short clause.
        status: The status: from 400 to 499 it is the request, from 500 on the service. Default 400.
        retry_after: Seconds after which to ask again; None where that would not help. Default None.
        **details: ``where``, ``expected``, ``found`` and ``fix`` of `mmfusion.errors.MMFusionError`.

    Example:
        >>> error = RequestError("too many wait already", status=503, retry_after=1)
        >>> error.status, str(error)
        (503, 'too many wait already')
    """

    def __init__(self, what: str, *, status: int = 400, retry_after: int | None = None, **details: Any) -> None:
        self.status, self.retry_after = status, retry_after
        super().__init__(what, **details)
