"""The typed recipe: load, validate, override. Imports no TensorFlow."""

from mmfusion.config.comparison import changed_paths
from mmfusion.config.data_config import AugmentConfig, DataConfig
from mmfusion.config.decoding_config import DecodingConfig
from mmfusion.config.figures import CAPTION_FIGURES, RETRIEVAL_FIGURES, lower_is_better
from mmfusion.config.fusion_config import FUSION_STYLES, STYLE_OPTIONS, FusionConfig
from mmfusion.config.loading import dump_recipe, load_recipe, nearest_path, recipe_from_dict, save_recipe
from mmfusion.config.model_config import ImageEncoderConfig, ModelConfig, TextConfig, TextEncoderConfig
from mmfusion.config.overrides import apply_overrides
from mmfusion.config.presets import FROZEN, PRESETS, SIZES
from mmfusion.config.recipe import PRESET_NAMES, Recipe
from mmfusion.config.train_config import (
    CaptioningConfig,
    ContrastiveConfig,
    DiagnosticsConfig,
    MaskedLanguageConfig,
    MatchingConfig,
    MomentumConfig,
    ObjectiveConfig,
    RecoveryConfig,
    TrainConfig,
)
from mmfusion.config.use_config import EvaluationConfig, GoalConfig, RangeConfig, TuneConfig

__all__ = [
    "CAPTION_FIGURES",
    "FROZEN",
    "FUSION_STYLES",
    "PRESETS",
    "PRESET_NAMES",
    "RETRIEVAL_FIGURES",
    "SIZES",
    "STYLE_OPTIONS",
    "AugmentConfig",
    "CaptioningConfig",
    "ContrastiveConfig",
    "DataConfig",
    "DecodingConfig",
    "DiagnosticsConfig",
    "EvaluationConfig",
    "FusionConfig",
    "GoalConfig",
    "ImageEncoderConfig",
    "MaskedLanguageConfig",
    "MatchingConfig",
    "ModelConfig",
    "MomentumConfig",
    "ObjectiveConfig",
    "RangeConfig",
    "Recipe",
    "RecoveryConfig",
    "TextConfig",
    "TextEncoderConfig",
    "TrainConfig",
    "TuneConfig",
    "apply_overrides",
    "changed_paths",
    "dump_recipe",
    "load_recipe",
    "lower_is_better",
    "nearest_path",
    "recipe_from_dict",
    "save_recipe",
]
