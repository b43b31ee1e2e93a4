"""What encoders are made of: a stack of blocks, and what one encoder asks of another."""

from __future__ import annotations

from typing import Any

from mmfusion.errors import ConfigError
from mmfusion.layers import TransformerBlock


def transformer_blocks(depth: int, *, stochastic_depth: float = 0.0, **options: Any) -> list[TransformerBlock]:
    """So many blocks, named ``block_0`` and on, the rate of dropping one growing linearly from 0 to `stochastic_depth`."""
    return [
        TransformerBlock(stochastic_depth=stochastic_depth * index / max(depth - 1, 1), name=f"block_{index}", **options)
        for index in range(depth)
    ]


def check_patches_alone(encoder: Any, where: str) -> None:
    """Refuses an encoder inside another that gives more than patches: the outer one lays out its tokens by their grid."""
    leading = getattr(encoder, "num_leading_tokens", 0)
    if leading:
        raise ConfigError(
            "an encoder inside another gives patches alone",
            where=where,
            expected="num_leading_tokens=0",
            found=leading,
            fix="build it without leading tokens",
        )
