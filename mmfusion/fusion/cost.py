"""What a pass through attention and feed-forward parts costs, as sums that every fusion style is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmfusion.layers.attention_options import DEFAULT_WINDOW
from mmfusion.layers.kernels.local import SMALLEST_BLOCK


@dataclass(frozen=True)
class Cost:
    """What one forward pass of one pair of text and image costs.

    Attributes:
        flops: Floating point operations of all matrix products, a multiplication and an addition counted as two. Normalisation,
            softmax and activations are left out: they are of lower order. A training step costs about three times as much.
        memory: Numbers that the gradient needs kept: what goes into each matrix product, attention weights included. Times
            4 bytes in float32, 2 in bfloat16. It is for comparing styles and sizes, not a peak: elementwise parts (norms,
            activations, softmax) keep numbers too, so that TensorFlow keeps 1 to 5 times as many, depending on the style.

    Example:
        >>> from mmfusion.fusion import Cost
        >>> 2 * Cost(flops=10, memory=3) + Cost(flops=1, memory=1)
        Cost(flops=21, memory=7)
    """

    flops: int = 0
    memory: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.memory + other.memory)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.flops * times, self.memory * times)

    __rmul__ = __mul__


def dense_cost(tokens: int, dim: int, output_dim: int) -> Cost:
    """A projection ``[N, D] → [N, Do]``: ``2·N·D·Do`` operations; its input is kept.

    Example:
        >>> dense_cost(10, 4, 8)
        Cost(flops=640, memory=40)
    """
    return Cost(2 * tokens * dim * output_dim, tokens * dim)


def attention_cost(
    queries: int,
    keys: int,
    dim: int,
    *,
    context_dim: int | None = None,
    num_heads: int,
    num_key_value_heads: int | None = None,
    kernel: str = "exact",
    window: int = DEFAULT_WINDOW,
    num_global_tokens: int = 0,
    attention_dim: int | None = None,
    output_dim: int | None = None,
) -> Cost:
    """Attention of N queries over S keys, its four projections included.

    ``2·(N·D·A + 2·S·Dc·A·g + 2·M·A + N·A·Do)`` operations with A = heads · width of a head, g = key and value heads over heads,
    and M pairs of a query and a key, ``N·S`` of them; queries, keys, values and inputs are kept, and ``heads·M`` weights with
    the exact and the local kernel. Self-attention of the local kernel over more than C = max(W, 64) tokens goes in blocks of C:
    with a window W and G leading tokens that see all and are seen by all, M is ``⌈N / C⌉·C·(C + 2W + G) + G·N``. The linear
    kernel has ``(N + S)·A·d`` instead of ``2·M·A``, with heads of width d.

    Args:
        queries: N.
        keys: S.
        dim: Width of the queries, D.
        context_dim: Width of the context, Dc; None is self-attention, over the queries and, where S is more than N, what stands
            before them.
        num_heads: Heads.
        num_key_value_heads: Heads of keys and values. Default: as many as heads.
        kernel: See `mmfusion.layers.Attention`: ``"exact"`` and ``"local"`` count the weights, the others do not keep them. Nor
            does exact attention where it runs in tiles (a processor) or fused (JAX, torch): there the count is an upper bound.
        window: W. Default 128.
        num_global_tokens: G. Default 0.
        attention_dim: A. Default D.
        output_dim: Do. Default D.

    Example:
        >>> attention_cost(2, 3, 4, context_dim=4, num_heads=2)
        Cost(flops=416, memory=72)
    """
    inner = dim if attention_dim is None else attention_dim
    context = dim if context_dim is None else context_dim
    grouped = inner * (num_heads if num_key_value_heads is None else num_key_value_heads) // num_heads
    output = dim if output_dim is None else output_dim
    narrow = kernel == "local" and context_dim is None
    pairs = _pairs_in_blocks(queries, window, num_global_tokens) if narrow else queries * keys
    products = (queries + keys) * inner * (inner // num_heads) if kernel == "linear" else 2 * pairs * inner
    flops = 2 * (queries * dim * inner + 2 * keys * context * grouped + products + queries * inner * output)
    inputs = max(queries, keys) * dim if context_dim is None else queries * dim + keys * context
    kept = inputs + 2 * queries * inner + 2 * keys * grouped
    # A context is seen whole: there the local kernel is the chunked one, which keeps no weights.
    return Cost(flops, kept + (num_heads * pairs if kernel == "exact" or narrow else 0))


def _pairs_in_blocks(tokens: int, window: int, num_global_tokens: int) -> int:
    """The pairs that `mmfusion.layers.kernels.local_attention` multiplies."""
    block = max(window, SMALLEST_BLOCK)
    if tokens <= block:
        return tokens * tokens
    blocks = -(-tokens // block)
    return blocks * block * (block + 2 * window + num_global_tokens) + num_global_tokens * tokens


def feed_forward_cost(tokens: int, dim: int, mlp_ratio: float = 4.0) -> Cost:
    """``[N, D] → [N, r·D] → [N, D]``: ``4·r·N·D²`` operations; input and hidden layer are kept.

    Example:
        >>> feed_forward_cost(10, 4, 2.0)
        Cost(flops=1280, memory=120)
    """
    hidden = int(dim * mlp_ratio)
    return dense_cost(tokens, dim, hidden) + dense_cost(tokens, hidden, dim)


def block_cost(
    tokens: int,
    dim: int,
    *,
    num_heads: int,
    mlp_ratio: float = 4.0,
    kernel: str = "exact",
    num_global_tokens: int = 0,
    self_attention: bool = True,
    prefix: int = 0,
    context: int | None = None,
    context_dim: int | None = None,
) -> Cost:
    """A `mmfusion.layers.TransformerBlock` over N tokens.

    Args:
        tokens: N.
        dim: Width of the tokens.
        num_heads: Heads.
        mlp_ratio: Hidden width of the feed-forward part over `dim`; 0 has no such part. Default 4.
        kernel: See `mmfusion.layers.Attention`. Default ``"exact"``.
        num_global_tokens: Leading tokens that see all and are seen by all with the local kernel. Default 0.
        self_attention: Whether the tokens attend to themselves. Default True.
        prefix: Tokens before them that they attend to as well. Default 0.
        context: Tokens of the context, S; None has no cross-attention.
        context_dim: Width of the context. Default `dim`.

    Example:
        >>> block_cost(2, 4, num_heads=1, mlp_ratio=1.0)
        Cost(flops=448, memory=60)
    """
    cost = Cost()
    options: dict[str, Any] = {"num_heads": num_heads, "kernel": kernel}
    if self_attention:
        cost += attention_cost(tokens, prefix + tokens, dim, num_global_tokens=num_global_tokens, **options)
    if context is not None:
        cost += attention_cost(tokens, context, dim, context_dim=dim if context_dim is None else context_dim, **options)
    return cost + feed_forward_cost(tokens, dim, mlp_ratio) if mlp_ratio else cost
