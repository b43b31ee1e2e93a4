"""How the beams of an example share the work: the contract, and the plain way."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from keras import KerasTensor, ops


class Candidates(NamedTuple):
    """For each bank the 2K continuations to go on with, best first.

    Attributes:
        ranking: ``float32[B·G, 2K]``, what ranks them; ``-inf`` = none.
        totals: ``float32[B·G, 2K]``, their sums of log-probabilities.
        origin: ``int32[B·G, 2K]``, the text that goes on, of the example's G · K.
        token: ``int32[B·G, 2K]``.
    """

    ranking: KerasTensor
    totals: KerasTensor
    origin: KerasTensor
    token: KerasTensor


class Banks(Protocol):
    """G banks of K beams each.

    Attributes:
        count: G.
        final: The bank whose texts are the result; None where those of all are.
    """

    count: int
    final: int | None

    def choose(self, continued: KerasTensor, end_id: int) -> Candidates:
        """Of all continuations ``float32[B, G, K, V]`` those to go on with.

        A live text has one continuation that ends, so that among 2K there are always K that go on.
        """
        ...


class OneBank:
    """All beams together."""

    count = 1
    final: int | None = None

    def choose(self, continued: KerasTensor, end_id: int) -> Candidates:
        """The 2K likeliest."""
        return likeliest(continued[:, 0], continued[:, 0])


def going_on(candidates: Candidates, end_id: int, count: int) -> tuple[KerasTensor, KerasTensor]:
    """The K of 2K that do not end: their totals ``float32[N, K]``, and their places ``int[N, K]``."""
    ends = candidates.token == end_id
    _, keep = ops.top_k(ops.where(ends, float("-inf"), candidates.ranking), count)
    return pick(ops.where(ends, float("-inf"), candidates.totals), keep), keep


def pick(values: KerasTensor, index: KerasTensor) -> KerasTensor:
    """``[N, M, ...]`` and ``int[N, K]`` to ``[N, K, ...]``."""
    return ops.take_along_axis(values, index[..., None] if len(values.shape) == 3 else index, axis=1)


def likeliest(ranking: KerasTensor, totals: KerasTensor, *, beams: int | None = None, first: int = 0) -> Candidates:
    """Of ``float32[B, M, V]`` the 2K highest, for K = M unless it is given."""
    texts, vocabulary = ranking.shape[1:]
    flat = ops.reshape(ranking, (-1, texts * vocabulary))
    values, index = ops.top_k(flat, 2 * (beams or texts))
    index = ops.cast(index, "int32")
    own = values if ranking is totals else pick(ops.reshape(totals, (-1, texts * vocabulary)), index)
    return Candidates(values, own, index // vocabulary + first, index % vocabulary)


def stacked(found: list[Candidates]) -> Candidates:
    """The candidates of all banks, from those of each."""
    size = found[0].token.shape[-1]
    return Candidates(*(ops.reshape(ops.stack(parts, axis=1), (-1, size)) for parts in zip(*found, strict=True)))
