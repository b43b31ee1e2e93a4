"""The stack of blocks that encoders are made of."""

from __future__ import annotations

from typing import Any

from mmfusion.layers import TransformerBlock


def transformer_blocks(depth: int, *, stochastic_depth: float = 0.0, **options: Any) -> list[TransformerBlock]:
    """So many blocks, named ``block_0`` and on, the rate of dropping one growing linearly from 0 to `stochastic_depth`."""
    return [
        TransformerBlock(stochastic_depth=stochastic_depth * index / max(depth - 1, 1), name=f"block_{index}", **options)
        for index in range(depth)
    ]
