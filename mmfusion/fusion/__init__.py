"""Ways to join text tokens and image tokens, one file each, all with one call contract."""

from mmfusion.fusion.bottleneck_fusion import BottleneckFusion
from mmfusion.fusion.cache_size import CacheSize
from mmfusion.fusion.co_fusion import CoFusion
from mmfusion.fusion.cost import Cost
from mmfusion.fusion.cross_fusion import CrossFusion
from mmfusion.fusion.fusion import Fusion, FusionCache, FusionOutput
from mmfusion.fusion.gated_fusion import GatedFusion
from mmfusion.fusion.late_fusion import LateFusion
from mmfusion.fusion.merged_fusion import MergedFusion
from mmfusion.fusion.qformer_fusion import QFormerFusion
from mmfusion.fusion.recurrent_fusion import RecurrentCache, RecurrentFusion
from mmfusion.fusion.resampler_fusion import ResamplerFusion

# The door where further styles enter: a word in a recipe names a class here.
STYLES: dict[str, type[Fusion]] = {
    "late": LateFusion,
    "cross": CrossFusion,
    "co": CoFusion,
    "merged": MergedFusion,
    "bottleneck": BottleneckFusion,
    "gated": GatedFusion,
    "qformer": QFormerFusion,
    "resampler": ResamplerFusion,
    "recurrent": RecurrentFusion,
}

__all__ = [
    "STYLES",
    "BottleneckFusion",
    "CacheSize",
    "CoFusion",
    "Cost",
    "CrossFusion",
    "Fusion",
    "FusionCache",
    "FusionOutput",
    "GatedFusion",
    "LateFusion",
    "MergedFusion",
    "QFormerFusion",
    "RecurrentCache",
    "RecurrentFusion",
    "ResamplerFusion",
]
