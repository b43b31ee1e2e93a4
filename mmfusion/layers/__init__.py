"""Attention and transformer blocks; `keras.ops` only, so they run on every Keras backend."""

from mmfusion.layers.additive_attention import AdditiveAttention
from mmfusion.layers.attach import attach
from mmfusion.layers.attention import KERNELS, Attention
from mmfusion.layers.attention_output import AttentionOutput
from mmfusion.layers.attention_pooling import AttentionPooling
from mmfusion.layers.attentive_lstm import AttentiveLSTM, AttentiveLSTMOutput, LSTMState
from mmfusion.layers.block_output import BlockOutput
from mmfusion.layers.cache import BlockCache, ContextCache, KeyValueCache
from mmfusion.layers.feed_forward import FeedForward
from mmfusion.layers.gated_cross_attention import GatedCrossAttention, GatedOutput
from mmfusion.layers.layer_scale import LayerScale
from mmfusion.layers.learned_positions import LearnedPositions
from mmfusion.layers.map_attention import MapAttention
from mmfusion.layers.memory_attention import MemoryOutput, ProjectedMemory
from mmfusion.layers.modality_dropout import ModalityDropout
from mmfusion.layers.multiplicative_attention import MultiplicativeAttention
from mmfusion.layers.patch_embedding import PatchEmbedding
from mmfusion.layers.perceiver_resampler import PerceiverResampler, ResamplerOutput
from mmfusion.layers.positions import resize_grid
from mmfusion.layers.qformer_block import QFormerBlock
from mmfusion.layers.sinusoidal_positions import SinusoidalPositions
from mmfusion.layers.space_time_block import SpaceTimeBlock
from mmfusion.layers.stochastic_depth import StochasticDepth
from mmfusion.layers.token_embedding import TokenEmbedding
from mmfusion.layers.transformer_block import TransformerBlock
from mmfusion.layers.tubelet_embedding import TubeletEmbedding

__all__ = [
    "KERNELS",
    "AdditiveAttention",
    "Attention",
    "AttentionOutput",
    "AttentionPooling",
    "AttentiveLSTM",
    "AttentiveLSTMOutput",
    "BlockCache",
    "BlockOutput",
    "ContextCache",
    "FeedForward",
    "GatedCrossAttention",
    "GatedOutput",
    "KeyValueCache",
    "LSTMState",
    "LayerScale",
    "LearnedPositions",
    "MapAttention",
    "MemoryOutput",
    "ModalityDropout",
    "MultiplicativeAttention",
    "PatchEmbedding",
    "PerceiverResampler",
    "ProjectedMemory",
    "QFormerBlock",
    "ResamplerOutput",
    "SinusoidalPositions",
    "SpaceTimeBlock",
    "StochasticDepth",
    "TokenEmbedding",
    "TransformerBlock",
    "TubeletEmbedding",
    "attach",
    "resize_grid",
]
