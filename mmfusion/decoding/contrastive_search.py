"""Contrastive search: likely tokens that do not say again what was said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import KerasTensor, ops

from mmfusion.decoding._banks import pick
from mmfusion.decoding._stepping import StepFunction, Stepper, check_at_least_one, keep_form, known_vocabulary, repeat_rows
from mmfusion.decoding.outputs import DecodeOutput
from mmfusion.decoding.token_rules import TokenRules
from mmfusion.errors import ConfigError


def contrastive_search(
    step: StepFunction,
    state: Any,
    *,
    hidden: Callable[[Any], KerasTensor],
    batch_size: int | KerasTensor,
    start_id: int,
    end_id: int,
    pad_id: int,
    max_tokens: int,
    top_k: int = 4,
    alpha: float = 0.6,
    rules: TokenRules | None = None,
    shared: Any = None,
) -> DecodeOutput:
    """Writes at each place, of the K likeliest tokens v, the one with the highest ``(1 - α) p(v) - α max_j cos(h_v, h_j)``.

    h_v is the model's hidden vector after v, h_j those after the tokens before it, the start token's too: a token is worth less
    where the text would turn back to what it has said. All K are read by one step of ``B·K`` tokens.

    Runs eagerly, in `tf.function` and under `jax.jit`. With one candidate, or ``alpha=0``, it is `greedy`.

    Args:
        step: ``(token_ids int32[N], state) -> (logits float[N, V], state)``, called with B start tokens first, then with
            ``B·K`` candidates at a time.
        state: What `step` carries, for a batch of B, see `beam_search`.
        hidden: From a state that `step` returned to the hidden vectors of the tokens just read, ``float[N, D]``.
        batch_size: B; an ``int32[]`` tensor where it is free.
        start_id: The token to begin with, not part of the result.
        end_id: The token that ends a text.
        pad_id: What follows the end; never written before it.
        max_tokens: L, most tokens to write, the end token included.
        top_k: K. Default 4.
        alpha: α, 0 to 1. Default 0.6.
        rules: What may be written, see `TokenRules`. Default: all but the padding.
        shared: Which tensors of the state belong to the example, see `beam_search`.

    Returns:
        The texts. One that no token could go on is ended there, with a score of ``-inf``.

    Raises:
        ConfigError: If an option is impossible, or `step` gives what it should not.

    Example:
        "2" is likelier again and again, but it says nothing new:

        >>> import numpy as np
        >>> from mmfusion.decoding import contrastive_search
        >>> def step(token_ids, state):
        ...     ids = np.asarray(token_ids)
        ...     chances = np.repeat([[0.01, 0.01, 0.58, 0.4]], len(ids), 0).astype("float32")
        ...     return np.log(chances), np.eye(4, dtype="float32")[ids]
        >>> output = contrastive_search(
        ...     step, np.zeros((1, 4), "float32"), hidden=lambda state: state, batch_size=1, top_k=2, start_id=1, end_id=0,
        ...     pad_id=0, max_tokens=3)
        >>> output.token_ids.numpy().tolist()
        [[2, 3, 2]]

    Source: Su et al., A Contrastive Framework for Neural Text Generation, 2022 (arXiv:2202.06417), equation 5.
    """
    rules = (rules or TokenRules()).checked(max_tokens)
    check_at_least_one(top_k=top_k)
    if not 0 <= alpha <= 1:
        raise ConfigError("impossible decoding option", where="alpha", expected="0 to 1", found=alpha)
    search = _Search(
        step, state, shared, hidden, batch_size,
        end_id=end_id, pad_id=pad_id, max_tokens=max_tokens, top_k=top_k, alpha=alpha, rules=rules,
    )  # fmt: skip
    carried = ops.while_loop(search.goes_on, search.write, search.begin(start_id))
    tokens, total, lengths = carried[1:4]
    return DecodeOutput(tokens, total / ops.cast(lengths, "float32"), lengths)


class _Search:
    """The loop: position, texts, sums, lengths, which have ended, logits of the next token, vectors so far, state."""

    def __init__(
        self,
        step: StepFunction,
        state: Any,
        shared: Any,
        hidden: Callable[[Any], KerasTensor],
        batch_size: int | KerasTensor,
        *,
        end_id: int,
        pad_id: int,
        max_tokens: int,
        top_k: int,
        alpha: float,
        rules: TokenRules,
    ) -> None:
        self._vectors: Any = None

        def observed(token_ids: KerasTensor, state: Any) -> tuple[KerasTensor, Any]:
            logits, state = step(token_ids, state)
            self._vectors = ops.cast(hidden(state), "float32")
            return logits, state

        self.stepper = Stepper(observed, state, shared)
        self.batch_size = batch_size
        self.end_id = end_id
        self.pad_id = pad_id
        self.max_tokens = max_tokens
        self.top_k = top_k
        self.alpha = alpha
        self.rules = rules

    def begin(self, start_id: int) -> tuple[Any, ...]:
        """The start token is read."""
        start = ops.full((self.batch_size,), start_id, "int32")
        logits, leaves = self.stepper(start, self.stepper.leaves)
        self.top_k = min(self.top_k, known_vocabulary(logits))
        vectors = _unit(self._vectors)[:, None]
        room = ops.zeros((ops.shape(vectors)[0], self.max_tokens, vectors.shape[-1]))
        return (
            ops.zeros((), "int32"),
            ops.full((self.batch_size, self.max_tokens), self.pad_id, "int32"),
            ops.zeros((self.batch_size,), "float32"),
            ops.zeros((self.batch_size,), "int32"),
            ops.zeros((self.batch_size,), "bool"),
            ops.cast(logits, "float32"),
            ops.concatenate([vectors, room], axis=1),
            leaves,
        )

    def goes_on(self, position: KerasTensor, *carried: Any) -> KerasTensor:
        """Whether a text has not ended."""
        return ops.logical_and(position < self.max_tokens, ops.logical_not(ops.all(carried[3])))

    def write(self, position: KerasTensor, *carried: Any) -> tuple[Any, ...]:
        """One token more, of each text."""
        tokens, total, lengths, ended, logits, said, leaves = carried
        scores = self.rules.scores(logits, position, tokens, end_id=self.end_id, pad_id=self.pad_id)
        best, candidates = ops.top_k(scores, self.top_k)
        possible = best > float("-inf")
        candidates = ops.where(possible, ops.cast(candidates, "int32"), self.end_id)
        repeated = [repeat_rows(leaf, self.top_k, self.batch_size) for leaf in leaves]
        new_logits, new_leaves = self.stepper(ops.reshape(candidates, (-1,)), repeated)
        vectors = ops.reshape(_unit(self._vectors), (-1, self.top_k, said.shape[-1]))
        alike = ops.matmul(vectors, ops.swapaxes(said, 1, 2))
        alike = ops.where(ops.arange(said.shape[1], dtype="int32") <= position, alike, -1.0)
        worth = (1.0 - self.alpha) * ops.exp(best) - self.alpha * ops.max(alike, axis=-1)
        choice = ops.cast(ops.argmax(ops.where(possible, worth, float("-inf")), axis=-1), "int32")[:, None]
        token = ops.where(ended, self.pad_id, pick(candidates, choice)[:, 0])
        rows = ops.arange(ops.shape(choice)[0], dtype="int32") * self.top_k + choice[:, 0]
        new = (
            ops.where(ops.arange(self.max_tokens, dtype="int32")[None] == position, token[:, None], tokens),
            total + ops.where(ended, 0.0, pick(best, choice)[:, 0]),
            lengths + ops.cast(ops.logical_not(ended), "int32"),
            ops.logical_or(ended, token == self.end_id),
            ops.cast(ops.take(new_logits, rows, axis=0), "float32"),
            # Not a slice: its update is XLA's on TensorFlow, which TensorFlow Serving runs only if told to.
            ops.where(ops.arange(said.shape[1], dtype="int32")[None, :, None] == position + 1, pick(vectors, choice), said),
        )
        moved = [
            keep_form(ops.take(leaf, rows, axis=0), old) if len(leaf.shape) else leaf
            for leaf, old in zip(new_leaves, leaves, strict=True)
        ]
        return position + 1, *map(keep_form, new, carried[:6]), moved


def _unit(vectors: KerasTensor) -> KerasTensor:
    return vectors / ops.maximum(ops.norm(vectors, axis=-1, keepdims=True), 1e-12)
