"""A small random language model whose next token depends on the example and on all tokens before."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest
from keras import ops

START, END, PAD = 1, 2, 0


class State(NamedTuple):
    """What the model carries: a memory, the example's own features, a shared count, and a part that is not used."""

    memory: dict[str, Any]
    features: Any
    position: Any
    unused: Any = None


class RecurrentModel:
    """``h = tanh(h W + E[token] + features)``, ``logits = h U``; the same in keras.ops and in NumPy."""

    def __init__(self, *, vocabulary: int = 5, batch_size: int = 3, dim: int = 6, seed: int = 0, sharpness: float = 1.5) -> None:
        self.ids = {"start_id": START, "end_id": END, "pad_id": PAD}
        generator = np.random.default_rng(seed)
        self.vocabulary, self.batch_size, self.dim = vocabulary, batch_size, dim
        self.recurrent, self.embedding, self.output, self.features = (
            generator.normal(size=size).astype("float32") * factor
            for size, factor in (
                ((dim, dim), 0.7),
                ((vocabulary, dim), 1.0),
                ((dim, vocabulary), sharpness),
                ((batch_size, dim), 1.0),
            )
        )

    def state(self, rows: slice = slice(None)) -> State:
        features = ops.convert_to_tensor(self.features[rows])
        return State({"hidden": ops.zeros_like(features)}, features, ops.convert_to_tensor(0, "int32"))

    def step(self, token_ids: Any, state: State) -> tuple[Any, State]:
        embedded = ops.take(ops.convert_to_tensor(self.embedding), token_ids, axis=0)
        hidden = ops.tanh(ops.matmul(state.memory["hidden"], self.recurrent) + embedded + state.features)
        logits = ops.matmul(hidden, self.output)
        return logits, State({"hidden": hidden}, state.features, state.position + 1)

    def log_probabilities(self, example: int, tokens: tuple[int, ...]) -> np.ndarray:
        """``float64[V]``, of the token after `tokens`, by NumPy from scratch."""
        hidden = np.zeros(self.dim)
        for token in (START, *tokens):
            hidden = np.tanh(hidden @ self.recurrent + self.embedding[token] + self.features[example])
        logits = hidden @ self.output.astype("float64")
        return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()

    def total(self, example: int, tokens: tuple[int, ...]) -> float:
        """Sum of log-probabilities of `tokens`."""
        return float(sum(self.log_probabilities(example, tokens[:i])[token] for i, token in enumerate(tokens)))

    def all_texts(self, max_tokens: int, min_tokens: int = 0) -> list[tuple[int, ...]]:
        """Every text that ends within the limit, and every one that is cut off there."""
        words = [token for token in range(self.vocabulary) if token not in (END, PAD)]
        texts = [(*text, END) for length in range(min_tokens, max_tokens) for text in itertools.product(words, repeat=length)]
        return texts + list(itertools.product(words, repeat=max_tokens))


@pytest.fixture
def recurrent_model() -> type[RecurrentModel]:
    """The class, to be built with a size and a seed."""
    return RecurrentModel
