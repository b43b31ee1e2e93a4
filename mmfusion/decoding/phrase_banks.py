"""Beams by which required phrases they have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from keras import KerasTensor, ops

from mmfusion.decoding._banks import Candidates, likeliest, stacked
from mmfusion.errors import ConfigError

LARGEST_AUTOMATON = 64


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
            found.append(likeliest(allowed, allowed, beams=beams))
        return stacked(found)

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
