"""Ways to join text tokens and image tokens, one file each, all with one call contract."""

from mmfusion.fusion.cost import Cost
from mmfusion.fusion.cross_fusion import CrossFusion
from mmfusion.fusion.fusion import Fusion, FusionCache, FusionOutput
from mmfusion.fusion.gated_fusion import GatedFusion
from mmfusion.fusion.late_fusion import LateFusion
from mmfusion.fusion.qformer_fusion import QFormerFusion
from mmfusion.fusion.resampler_fusion import ResamplerFusion

# The door where further styles enter: a word in a recipe names a class here.
STYLES: dict[str, type[Fusion]] = {
    "late": LateFusion,
    "cross": CrossFusion,
    "gated": GatedFusion,
    "qformer": QFormerFusion,
    "resampler": ResamplerFusion,
}

__all__ = [
    "STYLES",
    "Cost",
    "CrossFusion",
    "Fusion",
    "FusionCache",
    "FusionOutput",
    "GatedFusion",
    "LateFusion",
    "QFormerFusion",
    "ResamplerFusion",
]
