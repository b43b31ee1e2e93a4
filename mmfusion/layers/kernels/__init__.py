"""How attention is computed: each kernel one function of query, key, value and mask."""

from mmfusion.layers.kernels.chunked import chunked_attention
from mmfusion.layers.kernels.exact import attention_weights, exact_attention

__all__ = ["attention_weights", "chunked_attention", "exact_attention"]
