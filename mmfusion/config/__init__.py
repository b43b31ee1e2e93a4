"""The typed recipe: load, validate, override. Imports no TensorFlow."""

from mmfusion.config.data_config import AugmentConfig, DataConfig
from mmfusion.config.loading import dump_recipe, load_recipe, nearest_path, recipe_from_dict, save_recipe
from mmfusion.config.model_config import (
    FUSION_STYLES,
    FusionConfig,
    ImageEncoderConfig,
    ModelConfig,
    TextConfig,
    TextEncoderConfig,
)
from mmfusion.config.overrides import apply_overrides
from mmfusion.config.recipe import Recipe
from mmfusion.config.train_config import (
    CaptioningConfig,
    ContrastiveConfig,
    MatchingConfig,
    ObjectiveConfig,
    TrainConfig,
)
from mmfusion.config.use_config import DecodingConfig, EvaluationConfig, GoalConfig, RangeConfig, TuneConfig

__all__ = [
    "FUSION_STYLES",
    "AugmentConfig",
    "CaptioningConfig",
    "ContrastiveConfig",
    "DataConfig",
    "DecodingConfig",
    "EvaluationConfig",
    "FusionConfig",
    "GoalConfig",
    "ImageEncoderConfig",
    "MatchingConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "RangeConfig",
    "Recipe",
    "TextConfig",
    "TextEncoderConfig",
    "TrainConfig",
    "TuneConfig",
    "apply_overrides",
    "dump_recipe",
    "load_recipe",
    "nearest_path",
    "recipe_from_dict",
    "save_recipe",
]
