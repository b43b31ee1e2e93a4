"""What may be written next: rules that every decoder keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import KerasTensor, ops

from mmfusion.decoding._stepping import check_options
from mmfusion.errors import ConfigError


class TokenRules(NamedTuple):
    """What may be written next, and what is made less likely.

    A rule never spreads the remaining probability anew: the score of a text stays what the model itself says of its tokens,
    but for `repetition_penalty`, whose whole purpose is another score.

    Attributes:
        min_tokens: Fewest tokens before the end token; may be a scalar tensor, which is not checked. Default 0.
        forbidden_ids: Tokens that are never written, [UNK] say. Default none.
        allowed_ids: The only tokens that may be written, beside the end token. Default None, all.
        repetition_penalty: At least 1; ``log p · penalty`` for each token that the text has already. Default 1, none.
        no_repeat_ngram: No run of so many tokens comes twice; 1 is no token twice. Default 0, no such rule.
        prefix_ids: ``int32[B, P]``: the tokens that the texts begin with; free from where a row has the padding. They count
            towards lengths and scores as if they had been chosen. Default None, all free.

    Example:
        >>> from mmfusion.decoding import TokenRules
        >>> TokenRules(min_tokens=3, no_repeat_ngram=2).no_repeat_ngram
        2

    Source: the penalty: Keskar et al., CTRL, 2019 (arXiv:1909.05858), section 4.1, on log-probabilities; runs that do not
    repeat: Paulus et al. 2018 (arXiv:1705.04304), section 2.5.
    """

    min_tokens: int | KerasTensor = 0
    forbidden_ids: Sequence[int] = ()
    allowed_ids: Sequence[int] | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    prefix_ids: KerasTensor | None = None

    def checked(self, max_tokens: int) -> TokenRules:
        """These rules, if they can be kept.

        Raises:
            ConfigError: If they cannot.
        """
        fits = ops.is_tensor(self.min_tokens) or 0 <= self.min_tokens <= max_tokens
        check_options(
            ("max_tokens", max_tokens, max_tokens >= 1, "at least 1"),
            ("min_tokens", self.min_tokens, fits, f"0 to max_tokens ({max_tokens})"),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty >= 1, "at least 1"),
            ("no_repeat_ngram", self.no_repeat_ngram, self.no_repeat_ngram >= 0, "at least 0"),
            ("allowed_ids", self.allowed_ids, self.allowed_ids is None or len(self.allowed_ids) > 0, "at least one token"),
        )
        if self.prefix_ids is None:
            return self
        prefix = ops.convert_to_tensor(self.prefix_ids, "int32")
        if len(prefix.shape) != 2 or (prefix.shape[1] or 0) > max_tokens:
            expected = f"int[B, P] with P up to max_tokens ({max_tokens})"
            raise ConfigError("impossible decoding option", where="prefix_ids", expected=expected, found=list(prefix.shape))
        return self._replace(prefix_ids=prefix)

    @property
    def reads_tokens(self) -> bool:
        """Whether what was written decides what may come."""
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram > 0

    def repeated(self, beams: int) -> TokenRules:
        """The rules for so many texts about each example."""
        return self if self.prefix_ids is None else self._replace(prefix_ids=ops.repeat(self.prefix_ids, beams, axis=0))

    def scores(self, logits: KerasTensor, position: KerasTensor, tokens: KerasTensor, *, end_id: int, pad_id: int) -> KerasTensor:
        """Log-probabilities of the next token, ``-inf`` for what may not come next.

        A row without any finite logit comes out as ``-inf``, never NaN.

        Args:
            logits: ``float[N, V]``.
            position: ``int32[]``, how many tokens were written so far.
            tokens: ``int32[N, L]``, these tokens, and anything behind them.
            end_id: The token that ends a text.
            pad_id: Never written, unless it is the end token too.

        Returns:
            ``float32[N, V]``.
        """
        scores = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
        forbidden = ops.logical_or(ops.isnan(scores), ops.convert_to_tensor(self._never(scores.shape[-1], end_id, pad_id)))
        if ops.is_tensor(self.min_tokens) or self.min_tokens > 0:
            ends = ops.arange(scores.shape[-1], dtype="int32")[None, :] == end_id
            forbidden = ops.logical_or(forbidden, ops.logical_and(ends, position < ops.cast(self.min_tokens, "int32")))
        if self.reads_tokens:
            written = ops.arange(tokens.shape[1], dtype="int32") < position
            vocabulary = scores.shape[-1]
            if self.repetition_penalty != 1.0:
                seen = marked(tokens, ops.broadcast_to(written[None], ops.shape(tokens)), vocabulary) > 0
                scores = ops.where(seen, scores * self.repetition_penalty, scores)
            if self.no_repeat_ngram:
                repeats = marked(*_repeating(tokens, position, self.no_repeat_ngram), vocabulary) > 0
                forbidden = ops.logical_or(forbidden, repeats)
        scores = ops.where(forbidden, float("-inf"), scores)
        return scores if self.prefix_ids is None else self._begun(scores, logits, position, pad_id)

    def _never(self, vocabulary: int, end_id: int, pad_id: int) -> np.ndarray:
        """``bool[1, V]``: what is never written."""
        token_ids = np.arange(vocabulary)
        never = np.isin(token_ids, [*({pad_id, *self.forbidden_ids} - {end_id})])
        if self.allowed_ids is not None:
            never |= ~np.isin(token_ids, [*self.allowed_ids, end_id])
        return never[None]

    def _begun(self, scores: KerasTensor, logits: KerasTensor, position: KerasTensor, pad_id: int) -> KerasTensor:
        prefix: Any = self.prefix_ids
        length = prefix.shape[1]
        if not length:
            return scores
        wanted = ops.take(prefix, ops.minimum(position, length - 1), axis=1)[:, None]
        token_ids = ops.arange(scores.shape[-1], dtype="int32")[None, :]
        # What a prefix says counts, whatever the other rules say of it.
        own = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
        forced = ops.where(token_ids == wanted, own, float("-inf"))
        free = ops.logical_or(wanted == pad_id, position >= length)
        return ops.where(free, scores, forced)


def marked(tokens: KerasTensor, where: KerasTensor, vocabulary: int) -> KerasTensor:
    """How often each token id stands in a row.

    Args:
        tokens: ``int32[N, M]``.
        where: ``bool[N, M]``, ``True`` = it counts.
        vocabulary: V.

    Returns:
        ``int32[N, V]``.
    """
    rows, columns = ops.shape(tokens)
    row = ops.broadcast_to(ops.arange(rows, dtype="int32")[:, None], (rows, columns))
    # One more column, which is cut off again, takes what does not count: a scatter has no mask.
    column = ops.where(where, tokens, vocabulary)
    index = ops.stack([ops.reshape(row, (-1,)), ops.reshape(column, (-1,))], axis=-1)
    return ops.scatter(index, ops.ones_like(index[:, 0]), (rows, vocabulary + 1))[:, :vocabulary]


def _repeating(tokens: KerasTensor, position: KerasTensor, size: int) -> tuple[KerasTensor, KerasTensor]:
    """Tokens that once followed what now stands last: ``int32[N, M]``, and which of them count, ``bool[N, M]``."""
    length = tokens.shape[1]
    if size > length:
        return tokens[:, :1], ops.zeros_like(tokens[:, :1], dtype="bool")
    follows = tokens[:, size - 1 :]
    # What follows must have been written, and as much before it as the rule compares.
    counts = ops.arange(size - 1, length, dtype="int32")[None, :] < position
    same = ops.broadcast_to(counts, ops.shape(follows))
    for back in range(1, size):
        # The token `back` places before the next one, against the one as many places before each that follows.
        now = ops.take(tokens, ops.maximum(position - back, 0), axis=1)[:, None]
        same = ops.logical_and(same, tokens[:, size - 1 - back : length - back] == now)
    return follows, same
