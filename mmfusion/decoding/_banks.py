"""How the beams of an example share the work: as one search, as groups that differ, or by which required words they have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from keras import KerasTensor, ops

from mmfusion.decoding.token_rules import marked
from mmfusion.errors import ConfigError

LARGEST_AUTOMATON = 64


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
    final = None

    def choose(self, continued: KerasTensor, end_id: int) -> Candidates:
        """The 2K likeliest."""
        return _likeliest(continued[:, 0], continued[:, 0])


class DiverseBanks:
    """Groups, each of which avoids what those before it have just chosen.

    Args:
        count: G.
        penalty: By how much a log-probability falls for each text of an earlier group that went on with the same token.
    """

    final = None

    def __init__(self, count: int, penalty: float) -> None:
        self.count = count
        self.penalty = penalty

    def choose(self, continued: KerasTensor, end_id: int) -> Candidates:
        """Group by group the 2K likeliest, after the penalty."""
        beams, vocabulary = continued.shape[2:]
        found, taken = [], ops.zeros_like(continued[:, 0, 0])
        for group in range(self.count):
            own = continued[:, group]
            chosen = _likeliest(own - self.penalty * taken[:, None], own, first=group * beams)
            found.append(chosen)
            live, keep = going_on(chosen, end_id, beams)
            taken = taken + ops.cast(marked(pick(chosen.token, keep), live > float("-inf"), vocabulary), taken.dtype)
        return _stacked(found)


class PhraseBanks:
    """A bank for each state of an automaton that reads required phrases; the last bank's texts have them all.

    A state is how much of each phrase the newest tokens are the beginning of (Knuth, Morris and Pratt); what was read whole stays
    read.

    Args:
        phrases: Token ids of each phrase.

    Raises:
        ConfigError: If a phrase is empty, or there are too many states.
    """

    def __init__(self, phrases: Sequence[Sequence[int]]) -> None:
        for number, phrase in enumerate(phrases):
            if not len(phrase):
                raise ConfigError("an empty phrase", where=f"required[{number}]", expected="at least one token", found=[])
        self._special = sorted({token for phrase in phrases for token in phrase})
        self._after = _automaton([list(phrase) for phrase in phrases], [*self._special, None])
        self.count = len(self._after)
        self.final: int | None = self.count - 1

    def choose(self, continued: KerasTensor, end_id: int) -> Candidates:
        """For each state the 2K likeliest that lead there; a text that lacks a phrase does not end."""
        _, _, beams, vocabulary = continued.shape
        transitions = self.transitions(vocabulary)
        may_end = np.arange(self.count)[:, None] == self.final
        found = []
        for state in range(self.count):
            leads = (transitions == state) & ((np.arange(vocabulary)[None] != end_id) | may_end)
            allowed = ops.where(ops.convert_to_tensor(leads[None, :, None, :]), continued, float("-inf"))
            allowed = ops.reshape(allowed, (-1, self.count * beams, vocabulary))
            found.append(_likeliest(allowed, allowed, beams=beams))
        return _stacked(found)

    def transitions(self, vocabulary: int) -> np.ndarray:
        """Which state a token leads to: ``int32[S, V]``; state 0 has read nothing.

        Raises:
            ConfigError: If a phrase has a token that is not there.
        """
        if self._special[0] < 0 or self._special[-1] >= vocabulary:
            found = [token for token in self._special if not 0 <= token < vocabulary]
            raise ConfigError("no such token", where="required", expected=f"ids from 0 to {vocabulary - 1}", found=found)
        table = np.repeat(self._after[:, -1:], vocabulary, axis=1)
        table[:, self._special] = self._after[:, :-1]
        return table


def _automaton(phrases: list[list[int]], tokens: list[int | None]) -> np.ndarray:
    """Which state each of some tokens, or None for any other, leads to: ``int32[S, n]``; the last state has read all phrases."""
    goal = tuple(map(len, phrases))
    waiting: list[tuple[int, ...]] = [(0,) * len(phrases)]
    places, rows = {waiting[0]: 0}, []
    for state in waiting:
        row = [tuple(_advanced(phrase, read, token) for phrase, read in zip(phrases, state, strict=True)) for token in tokens]
        rows.append(row)
        for following in row:
            if following not in places:
                places[following] = len(places)
                waiting.append(following)
        if len(places) > LARGEST_AUTOMATON:
            raise ConfigError(
                "too many required phrases", where="required", expected=f"at most {LARGEST_AUTOMATON} states of progress",
                found=f"{len(phrases)} phrases", fix="require fewer or shorter ones",
            )  # fmt: skip
    # The goal, which leads to itself, stands last.
    order = sorted(places, key=lambda state: (state == goal, places[state]))
    new = {state: place for place, state in enumerate(order)}
    return np.array([[new[following] for following in rows[places[state]]] for state in order], "int32")


def _advanced(phrase: Sequence[int], read: int, token: int | None) -> int:
    """How many tokens of a phrase are read after one more."""
    if read == len(phrase) or token is None:
        return read if read == len(phrase) else 0
    newest = [*phrase[:read], token]
    return max(size for size in range(len(newest) + 1) if list(phrase[:size]) == newest[len(newest) - size :])


def going_on(candidates: Candidates, end_id: int, count: int) -> tuple[KerasTensor, KerasTensor]:
    """The K of 2K that do not end: their totals ``float32[N, K]``, and their places ``int[N, K]``."""
    ends = candidates.token == end_id
    _, keep = ops.top_k(ops.where(ends, float("-inf"), candidates.ranking), count)
    return pick(ops.where(ends, float("-inf"), candidates.totals), keep), keep


def pick(values: KerasTensor, index: KerasTensor) -> KerasTensor:
    """``[N, M, ...]`` and ``int[N, K]`` to ``[N, K, ...]``."""
    return ops.take_along_axis(values, index[..., None] if len(values.shape) == 3 else index, axis=1)


def _likeliest(ranking: KerasTensor, totals: KerasTensor, *, beams: int | None = None, first: int = 0) -> Candidates:
    """Of ``float32[B, M, V]`` the 2K highest, for K = M unless it is given."""
    texts, vocabulary = ranking.shape[1:]
    flat = ops.reshape(ranking, (-1, texts * vocabulary))
    values, index = ops.top_k(flat, 2 * (beams or texts))
    index = ops.cast(index, "int32")
    own = values if ranking is totals else pick(ops.reshape(totals, (-1, texts * vocabulary)), index)
    return Candidates(values, own, index // vocabulary + first, index % vocabulary)


def _stacked(found: list[Candidates]) -> Candidates:
    size = found[0].token.shape[-1]
    return Candidates(*(ops.reshape(ops.stack(parts, axis=1), (-1, size)) for parts in zip(*found, strict=True)))
