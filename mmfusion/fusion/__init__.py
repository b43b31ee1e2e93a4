"""Ways to join text tokens and image tokens, one file each, all with one call contract."""

from mmfusion.fusion.cost import Cost
from mmfusion.fusion.cross_fusion import CrossFusion
from mmfusion.fusion.fusion import Fusion, FusionCache, FusionOutput

# The door where further styles enter: a word in a recipe names a class here.
STYLES: dict[str, type[Fusion]] = {"cross": CrossFusion}

__all__ = ["STYLES", "Cost", "CrossFusion", "Fusion", "FusionCache", "FusionOutput"]
