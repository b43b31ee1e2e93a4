"""How a state follows its texts."""

from __future__ import annotations

from keras import KerasTensor, ops

from mmfusion.decoding._stepping import keep_form


class RowMover:
    """Lets the tensors of a state follow the texts that they belong to.

    Args:
        per_example: Texts about each example, K.
    """

    def __init__(self, per_example: int) -> None:
        self.per_example = per_example
        self._moved: set[int] = set()

    def __call__(self, new: list[KerasTensor], old: list[KerasTensor], origin: KerasTensor) -> list[KerasTensor]:
        """Tensors ``[B·K, ...]`` in the order of ``origin int32[B, K]``, places among an example's K texts."""
        first = ops.arange(ops.shape(origin)[0], dtype="int32")[:, None] * self.per_example
        rows = ops.reshape(first + origin, (-1,))
        # Run eagerly a step may change a tensor now and hand it back untouched later: once moved, always moved.
        self._moved.update(i for i, leaf in enumerate(new) if leaf is not old[i])
        return [
            keep_form(ops.take(leaf, rows, axis=0), old[i]) if i in self._moved and len(leaf.shape) else leaf
            for i, leaf in enumerate(new)
        ]
