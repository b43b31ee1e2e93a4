"""Beam search: the K likeliest texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from keras import KerasTensor, ops

from mmfusion.decoding._stepping import StepFunction, Stepper, check_limits, keep_form, log_probabilities
from mmfusion.decoding.outputs import BeamOutput
from mmfusion.errors import ConfigError


def beam_search(
    step: StepFunction,
    state: Any,
    *,
    batch_size: int | KerasTensor,
    beam_size: int,
    start_id: int,
    end_id: int,
    pad_id: int,
    max_tokens: int,
    min_tokens: int = 0,
    length_penalty: float = 1.0,
    early_stopping: bool = True,
    forbidden_ids: Sequence[int] = (),
) -> BeamOutput:
    """Looks for the texts with the highest ``score = Σ_t log p(token[t]) / length ** length_penalty``.

    At each token the K likeliest continuations of the live texts go on. A continuation among the K likeliest that ends
    is moved to the ended texts, of which the K with the best scores are kept; those never change again. At
    `max_tokens` the texts that are still live are scored as they stand, beside the ended ones. With one beam this is
    `greedy`; with enough beams for all texts it is exact.

    Runs eagerly, in `tf.function` (with ``jit_compile`` too) and under `jax.jit`. An example's result does not depend
    on the others in its batch.

    Args:
        step: ``(token_ids int32[B·K], state) -> (logits float[B·K, V], state)``. It is called with the start tokens
            first, and at most `max_tokens` times. Logits may be of any float type, and ``-inf`` for what cannot come.
        state: What `step` carries, for a batch of B: nested tensors (or None), whose shapes and types do not change.
            Axis 0 of every tensor is the batch; it is repeated for the beams here, and follows the beams as they are
            reordered. Scalars are shared. A tensor that `step` hands back untouched, as it does with an image's keys
            and values, is not moved: it is the same for all beams of an example.
        batch_size: B; an ``int32[]`` tensor where it is free.
        beam_size: K.
        start_id: The token to begin with, not part of the result.
        end_id: The token that ends a text.
        pad_id: What follows the end; never written before it.
        max_tokens: L, most tokens to write, the end token included.
        min_tokens: Fewest tokens before the end token. Default 0.
        length_penalty: 0 compares sums (favours short texts), 1 means a token, more favours long texts. Default 1.
        early_stopping: True ends an example when K of its texts have ended; False when, besides, no live text could
            still beat the worst of them, which takes longer and never finds a worse best text. Default True.
        forbidden_ids: Tokens that are never written, [UNK] say. Default none.

    Returns:
        The texts, best first.

    Raises:
        ConfigError: If limits cannot be kept, or `step` gives what it should not.

    Example:
        "2" is the likelier first token, but what follows it is a toss-up:

        >>> import numpy as np
        >>> from mmfusion.decoding import beam_search
        >>> chance = np.full((5, 5), 1e-9, "float32")
        >>> chance[1, [2, 3]], chance[2, [2, 3, 4]], chance[3, 4] = [0.6, 0.4], [0.3, 0.3, 0.4], 1.0
        >>> output = beam_search(
        ...     lambda token_ids, state: (np.log(chance)[np.asarray(token_ids)], state),
        ...     (), batch_size=1, beam_size=2, start_id=1, end_id=4, pad_id=0, max_tokens=3)
        >>> output.token_ids[0].numpy().tolist(), [round(float(np.exp(2 * score)), 2) for score in output.scores[0]]
        ([[3, 4, 0], [2, 4, 0]], [0.4, 0.24])

    Source: the split in live and ended texts: Vaswani et al., Tensor2Tensor, 2018 (arXiv:1803.07416); ending at K ended
    texts and counting only ends among the K likeliest: Ott et al., fairseq, 2019 (arXiv:1904.01038).
    """
    check_limits(max_tokens=max_tokens, min_tokens=min_tokens, beam_size=beam_size)
    search = _Search(
        Stepper(step, state),
        beam_size=beam_size,
        end_id=end_id,
        pad_id=pad_id,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        forbidden_ids=forbidden_ids,
    )
    beams, _ = ops.while_loop(search.goes_on, search.grow, search.begin(batch_size, start_id))
    return search.finish(beams)


class _Beams(NamedTuple):
    """What the search carries: for each example K texts that still grow, and the K best that have ended.

    Attributes:
        position: ``int32[]``, tokens written so far.
        live_tokens: ``int32[B, K, L]``.
        live_totals: ``float32[B, K]``, sums of log-probabilities, best first; ``-inf`` = no text.
        last: ``int32[B, K]``, newest tokens of the live texts.
        ended_tokens: ``int32[B, K, L]``.
        ended_scores: ``float32[B, K]``, penalised, best first; ``-inf`` = no text yet.
        ended_lengths: ``int32[B, K]``.
        done: ``bool[B]``, the ended texts do not change any more.
    """

    position: KerasTensor
    live_tokens: KerasTensor
    live_totals: KerasTensor
    last: KerasTensor
    ended_tokens: KerasTensor
    ended_scores: KerasTensor
    ended_lengths: KerasTensor
    done: KerasTensor


class _Search:
    """The loop of one `beam_search`: how it begins, goes on, grows by one token, and finishes."""

    def __init__(
        self,
        stepper: Stepper,
        *,
        beam_size: int,
        end_id: int,
        pad_id: int,
        max_tokens: int,
        min_tokens: int,
        length_penalty: float,
        early_stopping: bool,
        forbidden_ids: Sequence[int],
    ) -> None:
        self.stepper = stepper
        self.beam_size = beam_size
        self.end_id = end_id
        self.pad_id = pad_id
        self.max_tokens = max_tokens
        self.min_tokens = min_tokens
        self.length_penalty = float(length_penalty)
        self.early_stopping = early_stopping
        self.forbidden_ids = forbidden_ids
        self._moved: set[int] = set()

    def begin(self, batch_size: int | KerasTensor, start_id: int) -> tuple[_Beams, list[KerasTensor]]:
        """No text has ended, and each example has one live text without tokens."""
        shape = (batch_size, self.beam_size)
        no_tokens = ops.full((*shape, self.max_tokens), self.pad_id, "int32")
        # All beams begin alike: were more than one alive, every text would come K times.
        totals = ops.where(ops.arange(self.beam_size) == 0, 0.0, float("-inf"))
        beams = _Beams(
            position=ops.zeros((), "int32"),
            live_tokens=no_tokens,
            live_totals=ops.zeros(shape, "float32") + ops.cast(totals, "float32"),
            last=ops.full(shape, start_id, "int32"),
            ended_tokens=no_tokens,
            ended_scores=ops.full(shape, float("-inf"), "float32"),
            ended_lengths=ops.zeros(shape, "int32"),
            done=ops.zeros((batch_size,), "bool"),
        )
        return beams, [self._repeat(leaf, batch_size) for leaf in self.stepper.leaves]

    def goes_on(self, beams: _Beams, leaves: list[KerasTensor]) -> KerasTensor:
        """Whether there is an example that could still change."""
        return ops.logical_and(beams.position < self.max_tokens, ops.logical_not(ops.all(beams.done)))

    def grow(self, beams: _Beams, leaves: list[KerasTensor]) -> tuple[_Beams, list[KerasTensor]]:
        """Writes one token to each live text."""
        count, length = self.beam_size, beams.position + 1
        logits, new_leaves = self.stepper(ops.reshape(beams.last, (-1,)), leaves)
        scores = log_probabilities(
            logits,
            beams.position,
            end_id=self.end_id,
            pad_id=self.pad_id,
            min_tokens=self.min_tokens,
            forbidden_ids=self.forbidden_ids,
        )
        vocabulary = _vocabulary_size(scores)
        totals = beams.live_totals[..., None] + ops.reshape(scores, (-1, count, vocabulary))
        # A live text has one continuation that ends, so that among 2K there are always K that go on.
        totals, index = ops.top_k(ops.reshape(totals, (-1, count * vocabulary)), 2 * count)
        index = ops.cast(index, "int32")
        origin, token = index // vocabulary, index % vocabulary
        at_position = ops.arange(self.max_tokens, dtype="int32")[None, None, :] == beams.position
        tokens = ops.where(at_position, token[..., None], _pick(beams.live_tokens, origin))

        ends = token == self.end_id
        counts = ops.logical_and(ends[:, :count], ops.logical_not(beams.done)[:, None])
        ended_scores, ended_tokens, ended_lengths = _best(
            count,
            (beams.ended_scores, beams.ended_tokens, beams.ended_lengths),
            (
                ops.where(counts, self._penalise(totals[:, :count], length), float("-inf")),
                tokens[:, :count],
                ops.zeros_like(beams.ended_lengths) + length,
            ),
        )
        live_totals, keep = ops.top_k(ops.where(ends, float("-inf"), totals), count)
        new = _Beams(
            position=length,
            live_tokens=_pick(tokens, keep),
            live_totals=live_totals,
            last=_pick(token, keep),
            ended_tokens=ended_tokens,
            ended_scores=ended_scores,
            ended_lengths=ended_lengths,
            done=ops.logical_or(beams.done, self._is_done(ended_scores, live_totals, length)),
        )
        return _Beams(*map(keep_form, new, beams)), self._reorder(new_leaves, leaves, _pick(origin, keep))

    def finish(self, beams: _Beams) -> BeamOutput:
        """The best of the texts that ended and those that were cut off."""
        cut_off = ops.where(beams.done[:, None], float("-inf"), self._penalise(beams.live_totals, self.max_tokens))
        scores, tokens, lengths = _best(
            self.beam_size,
            (beams.ended_scores, beams.ended_tokens, beams.ended_lengths),
            (cut_off, beams.live_tokens, ops.full_like(beams.ended_lengths, self.max_tokens)),
        )
        found = scores > float("-inf")
        return BeamOutput(ops.where(found[..., None], tokens, self.pad_id), scores, ops.where(found, lengths, 0))

    def _penalise(self, totals: KerasTensor, length: Any) -> KerasTensor:
        return totals / ops.power(ops.cast(length, "float32"), self.length_penalty)

    def _is_done(self, ended_scores: KerasTensor, live_totals: KerasTensor, length: KerasTensor) -> KerasTensor:
        worst, best = ended_scores[:, -1], live_totals[:, 0]
        enough = worst > float("-inf")
        if not self.early_stopping:
            # Sums only fall: the best that a live text can come to is its sum of now at the kindest length.
            kindest = self.max_tokens if self.length_penalty > 0 else length + 1
            enough = ops.logical_and(enough, worst >= self._penalise(best, kindest))
        return ops.logical_or(enough, best == float("-inf"))

    def _repeat(self, leaf: KerasTensor, batch_size: int | KerasTensor) -> KerasTensor:
        if not len(leaf.shape):
            return leaf
        if isinstance(batch_size, int) and leaf.shape[0] not in (None, batch_size):
            raise ConfigError(
                "the first axis of a decoding state is the batch",
                where="state",
                expected=f"[{batch_size}, ...]",
                found=str(list(leaf.shape)),
            )
        return ops.repeat(leaf, self.beam_size, axis=0)

    def _reorder(self, new: list[KerasTensor], old: list[KerasTensor], origin: KerasTensor) -> list[KerasTensor]:
        first = ops.arange(ops.shape(origin)[0], dtype="int32")[:, None] * self.beam_size
        rows = ops.reshape(first + origin, (-1,))
        # Run eagerly a step may change a tensor now and hand it back untouched later: once moved, always moved.
        self._moved.update(i for i, leaf in enumerate(new) if leaf is not old[i])
        return [
            keep_form(ops.take(leaf, rows, axis=0), old[i]) if i in self._moved and len(leaf.shape) else leaf
            for i, leaf in enumerate(new)
        ]


def _vocabulary_size(scores: KerasTensor) -> int:
    size = scores.shape[-1]
    if size is None or size < 2:
        raise ConfigError("beam search needs a known vocabulary", where="step", expected="V of 2 or more", found=size)
    return int(size)


def _pick(values: KerasTensor, index: KerasTensor) -> KerasTensor:
    """``[B, N, ...]`` and ``int[B, M]`` to ``[B, M, ...]``."""
    return ops.take_along_axis(values, index[..., None] if len(values.shape) == 3 else index, axis=1)


def _best(count: int, first: tuple[KerasTensor, ...], second: tuple[KerasTensor, ...]) -> list[KerasTensor]:
    """Of two sets of rows those with the highest scores, best first; the scores stand first in each tuple."""
    together = [ops.concatenate(pair, axis=1) for pair in zip(first, second, strict=True)]
    _, index = ops.top_k(together[0], count)
    return [_pick(values, index) for values in together]
