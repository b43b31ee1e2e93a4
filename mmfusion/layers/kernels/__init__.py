"""How attention is computed: each kernel one function of query, key, value and mask."""

from mmfusion.layers.kernels.chunked import chunked_attention
from mmfusion.layers.kernels.exact import attention_weights, exact_attention, repeated
from mmfusion.layers.kernels.linear import FEATURE_MAPS, linear_attention, linear_weights
from mmfusion.layers.kernels.local import local_attention, window_mask
from mmfusion.layers.kernels.soft_cap import soft_cap

__all__ = [
    "FEATURE_MAPS",
    "attention_weights",
    "chunked_attention",
    "exact_attention",
    "linear_attention",
    "linear_weights",
    "local_attention",
    "repeated",
    "soft_cap",
    "window_mask",
]
