"""Beam search: the K likeliest texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import KerasTensor, ops

from mmfusion.decoding._banks import Banks, OneBank, going_on, pick
from mmfusion.decoding._stepping import (
    StepFunction,
    Stepper,
    check_at_least_one,
    check_limit,
    keep_form,
    known_vocabulary,
    repeat_rows,
)
from mmfusion.decoding.diverse_banks import DiverseBanks
from mmfusion.decoding.outputs import BeamOutput
from mmfusion.decoding.phrase_banks import PhraseBanks
from mmfusion.decoding.row_mover import RowMover
from mmfusion.decoding.token_rules import TokenRules
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
    length_penalty: float | KerasTensor = 1.0,
    early_stopping: bool = True,
    num_groups: int = 1,
    diversity_penalty: float = 0.5,
    required: Sequence[Sequence[int]] = (),
    rules: TokenRules | None = None,
    shared: Any = None,
    limit: int | KerasTensor | None = None,
) -> BeamOutput:
    """Looks for the texts with the highest ``score = Σ_t log p(token[t]) / length ** length_penalty``.

    At each token the K likeliest continuations of the live texts go on. A continuation among the K likeliest that ends
    is moved to the ended texts, of which the K with the best scores are kept; those never change again. At
    `max_tokens` the texts that are still live are scored as they stand, beside the ended ones. With one beam this is
    `greedy`; with enough beams for all texts it is exact.

    With G groups the beams are G searches of K / G beams each, one after the other at each token: a group chooses by
    ``log p - diversity_penalty · n``, n being how many texts of the groups before it have just gone on with the same token. The
    penalty decides what is chosen, and does not enter the scores.

    With required phrases every text has all of them, in any order: K beams are kept for each state of an automaton that reads
    the phrases, and those of its last state are the result. A phrase of one token doubles the beams, a longer one more.

    Runs eagerly, in `tf.function` (with ``jit_compile`` too) and under `jax.jit`. An example's result does not depend
    on the others in its batch. `length_penalty` and `limit`, and `min_tokens` of the rules, may be scalar tensors, so that one
    graph serves all their values; those are not checked.

    Args:
        step: ``(token_ids int32[B·K], state) -> (logits float[B·K, V], state)``. It is called with the start tokens
            first, and at most `max_tokens` times. Logits may be of any float type, and ``-inf`` for what cannot come.
        state: What `step` carries, for a batch of B: nested tensors (or None), whose shapes and types do not change.
            Axis 0 of every tensor is the batch; it is repeated for the beams here, and follows the beams as they are
            reordered. Scalars are shared. A tensor that `step` hands back untouched, as it does with an image's keys
            and values, is not moved: it is the same for all beams of an example.
        batch_size: B; an ``int32[]`` tensor where it is free.
        beam_size: K, a multiple of `num_groups`.
        start_id: The token to begin with, not part of the result.
        end_id: The token that ends a text.
        pad_id: What follows the end; never written before it.
        max_tokens: L, most tokens to write, the end token included.
        length_penalty: 0 compares sums (favours short texts), 1 means a token, more favours long texts. Default 1.
        early_stopping: True ends an example when K of its texts have ended; False when, besides, no live text could
            still beat the worst of them, which takes longer and never finds a worse best text. Default True.
        num_groups: G. Default 1.
        diversity_penalty: At least 0, of several groups. Default 0.5. With 0 each text is found by each group, and computed once.
        required: Phrases, token ids each, that every text has; not together with groups. Default none.
        rules: What may be written, see `TokenRules`. Default: all but the padding.
        shared: The structure of the state with a bool for each tensor: True for one that belongs to the example and not to a
            text, such as an image's keys and values. It is never repeated: `step` gets it with B rows beside ``B·K`` tokens, of
            which K in a row are of one example. Default: none is.
        limit: Most tokens to write this time, 1 to L. Default: L.

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
    texts and counting only ends among the K likeliest: Ott et al., fairseq, 2019 (arXiv:1904.01038); groups: Vijayakumar et
    al., Diverse Beam Search, 2018 (arXiv:1610.02424), with the Hamming diversity of section 3; required phrases: Anderson et
    al., Guided Open Vocabulary Image Captioning with Constrained Beam Search, 2017 (arXiv:1612.00576).
    """
    rules = (rules or TokenRules()).checked(max_tokens)
    check_at_least_one(beam_size=beam_size, num_groups=num_groups)
    if beam_size % num_groups or diversity_penalty < 0:
        raise ConfigError(
            "impossible groups of beams",
            where="num_groups",
            expected=f"a divisor of beam_size ({beam_size}), and diversity_penalty of at least 0",
            found=f"num_groups={num_groups}, diversity_penalty={diversity_penalty}",
        )
    if required and num_groups > 1:
        raise ConfigError("required phrases and groups do not go together", where="required", fix="choose one of them")
    banks: Banks = OneBank()
    if required:
        banks = PhraseBanks(required)
    # Groups that do not avoid each other are one search, whose texts each of them finds.
    alike = num_groups > 1 and not ops.is_tensor(diversity_penalty) and diversity_penalty == 0
    if num_groups > 1 and not alike:
        banks = DiverseBanks(num_groups, diversity_penalty)
    search = _Search(
        Stepper(step, state, shared),
        banks,
        beam_size=beam_size // num_groups,
        end_id=end_id,
        pad_id=pad_id,
        max_tokens=max_tokens,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        rules=rules,
        limit=limit,
    )
    beams, _ = ops.while_loop(search.goes_on, search.grow, search.begin(batch_size, start_id))
    found = search.finish(beams)
    return BeamOutput(*(ops.repeat(part, num_groups, axis=1) for part in found)) if alike else found


class _Beams(NamedTuple):
    """What the search carries: for each of an example's G banks K texts that still grow, and the K best that have ended.

    Attributes:
        position: ``int32[]``, tokens written so far.
        live_tokens: ``int32[B·G, K, L]``.
        live_totals: ``float32[B·G, K]``, sums of log-probabilities; ``-inf`` = no text.
        last: ``int32[B·G, K]``, newest tokens of the live texts.
        ended_tokens: ``int32[B·G, K, L]``.
        ended_scores: ``float32[B·G, K]``, penalised, best first; ``-inf`` = no text yet.
        ended_lengths: ``int32[B·G, K]``.
        done: ``bool[B·G]``, the ended texts do not change any more.
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
        banks: Banks,
        *,
        beam_size: int,
        end_id: int,
        pad_id: int,
        max_tokens: int,
        length_penalty: float | KerasTensor,
        early_stopping: bool,
        rules: TokenRules,
        limit: int | KerasTensor | None,
    ) -> None:
        self.stepper = stepper
        self.banks = banks
        self.beam_size = beam_size
        self.per_example = banks.count * beam_size
        self.end_id = end_id
        self.pad_id = pad_id
        self.max_tokens = max_tokens
        self.most = check_limit(limit, max_tokens)
        given = ops.is_tensor(length_penalty)
        self.length_penalty = ops.cast(length_penalty, "float32") if given else float(length_penalty)
        self.early_stopping = early_stopping
        self.rules = rules.repeated(self.per_example)
        self.move = RowMover(self.per_example)

    def begin(self, batch_size: int | KerasTensor, start_id: int) -> tuple[_Beams, list[KerasTensor]]:
        """No text has ended, and there is one live text without tokens for an example, or for each of its groups."""
        rows = batch_size * self.banks.count
        shape = (rows, self.beam_size)
        no_tokens = ops.full((*shape, self.max_tokens), self.pad_id, "int32")
        # All beams begin alike: were more than one alive, every text would come K times.
        alive = np.zeros((self.banks.count, self.beam_size), bool)
        alive[slice(1 if self._joined else None), 0] = True
        totals = ops.convert_to_tensor(np.where(alive, np.float32(0), -np.inf).astype("float32"))
        beams = _Beams(
            position=ops.zeros((), "int32"),
            live_tokens=no_tokens,
            live_totals=ops.tile(totals, (batch_size, 1)),
            last=ops.full(shape, start_id, "int32"),
            ended_tokens=no_tokens,
            ended_scores=ops.full(shape, float("-inf"), "float32"),
            ended_lengths=ops.zeros(shape, "int32"),
            done=ops.zeros((rows,), "bool"),
        )
        return beams, [repeat_rows(leaf, self.per_example, batch_size) for leaf in self.stepper.leaves]

    @property
    def _joined(self) -> bool:
        """Whether the banks are one search, whose result is one bank's."""
        return self.banks.final is not None

    def goes_on(self, beams: _Beams, leaves: list[KerasTensor]) -> KerasTensor:
        """Whether there is a search that could still change."""
        return ops.logical_and(beams.position < self.most, ops.logical_not(ops.all(beams.done)))

    def grow(self, beams: _Beams, leaves: list[KerasTensor]) -> tuple[_Beams, list[KerasTensor]]:
        """Writes one token to each live text."""
        count, length = self.beam_size, beams.position + 1
        written = ops.reshape(beams.live_tokens, (-1, self.max_tokens))
        logits, new_leaves = self.stepper(ops.reshape(beams.last, (-1,)), leaves)
        scores = self.rules.scores(logits, beams.position, written, end_id=self.end_id, pad_id=self.pad_id)
        scores = ops.reshape(scores, (-1, self.banks.count, count, known_vocabulary(scores)))
        live_totals = ops.reshape(beams.live_totals, (-1, self.banks.count, count))
        candidates = self.banks.choose(live_totals[..., None] + scores, self.end_id)
        at_position = ops.arange(self.max_tokens, dtype="int32")[None, None, :] == beams.position
        tokens = ops.where(at_position, candidates.token[..., None], self._texts(written, candidates.origin))

        counts = ops.logical_and(candidates.token == self.end_id, ops.logical_not(beams.done)[:, None])[:, :count]
        ended_scores, ended_tokens, ended_lengths = _best(
            count,
            (beams.ended_scores, beams.ended_tokens, beams.ended_lengths),
            (
                ops.where(counts, self._penalise(candidates.totals[:, :count], length), float("-inf")),
                tokens[:, :count],
                ops.zeros_like(beams.ended_lengths) + length,
            ),
        )
        totals, keep = going_on(candidates, self.end_id, count)
        new = _Beams(
            position=length,
            live_tokens=pick(tokens, keep),
            live_totals=totals,
            last=pick(candidates.token, keep),
            ended_tokens=ended_tokens,
            ended_scores=ended_scores,
            ended_lengths=ended_lengths,
            done=ops.logical_or(beams.done, self._is_done(ended_scores, totals, length)),
        )
        origin = ops.reshape(pick(candidates.origin, keep), (-1, self.per_example))
        return _Beams(*map(keep_form, new, beams)), self.move(new_leaves, leaves, origin)

    def _texts(self, written: KerasTensor, origin: KerasTensor) -> KerasTensor:
        """The texts ``int32[B·G, 2K, L]`` by their places among the example's G · K."""
        texts = ops.reshape(written, (-1, self.per_example, self.max_tokens))
        found = pick(texts, ops.reshape(origin, (-1, 2 * self.per_example)))
        return ops.reshape(found, (-1, 2 * self.beam_size, self.max_tokens))

    def finish(self, beams: _Beams) -> BeamOutput:
        """The best of the texts that ended and those that were cut off."""
        cut_off = ops.where(beams.done[:, None], float("-inf"), self._penalise(beams.live_totals, self.most))
        scores, tokens, lengths = _best(
            self.beam_size,
            (beams.ended_scores, beams.ended_tokens, beams.ended_lengths),
            (cut_off, beams.live_tokens, ops.full_like(beams.ended_lengths, self.most)),
        )
        if self._joined:
            scores, tokens, lengths = (x[self.banks.final :: self.banks.count] for x in (scores, tokens, lengths))
        elif self.banks.count > 1:
            scores, lengths = (ops.reshape(x, (-1, self.per_example)) for x in (scores, lengths))
            scores, order = ops.top_k(scores, self.per_example)
            tokens, lengths = (pick(x, order) for x in (ops.reshape(tokens, (-1, self.per_example, self.max_tokens)), lengths))
        found = scores > float("-inf")
        return BeamOutput(ops.where(found[..., None], tokens, self.pad_id), scores, ops.where(found, lengths, 0))

    def _penalise(self, totals: KerasTensor, length: Any) -> KerasTensor:
        return totals / ops.power(ops.cast(length, "float32"), self.length_penalty)

    def _is_done(self, ended_scores: KerasTensor, live_totals: KerasTensor, length: KerasTensor) -> KerasTensor:
        worst, best = ended_scores[:, -1], ops.max(live_totals, axis=1)
        if self._joined:
            # Each bank is done when the example is: a text of any of them may still come to the last.
            count = self.banks.count
            best = ops.repeat(ops.max(ops.reshape(best, (-1, count)), axis=1), count)
            worst = ops.repeat(worst[self.banks.final :: count], count)
        enough = worst > float("-inf")
        if not self.early_stopping:
            # Sums only fall: the best that a live text can come to is its sum of now at the kindest length.
            favours_long = self.length_penalty > 0
            if isinstance(favours_long, bool):
                kindest = self.most if favours_long else length + 1
            else:
                kindest = ops.where(favours_long, self.most, length + 1)
            enough = ops.logical_and(enough, worst >= self._penalise(best, kindest))
        return ops.logical_or(enough, best == float("-inf"))


def _best(count: int, first: tuple[KerasTensor, ...], second: tuple[KerasTensor, ...]) -> list[KerasTensor]:
    """Of two sets of rows those with the highest scores, best first; the scores stand first in each tuple."""
    together = [ops.concatenate(pair, axis=1) for pair in zip(first, second, strict=True)]
    _, index = ops.top_k(together[0], count)
    return [pick(values, index) for values in together]
