"""The recipe: one file, one experiment."""

from __future__ import annotations

import difflib
import itertools
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from mmfusion.config.data_config import DataConfig
from mmfusion.config.decoding_config import DecodingConfig
from mmfusion.config.figures import figures_of
from mmfusion.config.fusion_config import STYLE_OPTIONS, FusionConfig
from mmfusion.config.model_config import ModelConfig, TextConfig
from mmfusion.config.section import Section
from mmfusion.config.train_config import ObjectiveConfig, TrainConfig
from mmfusion.config.translation_config import TranslationConfig
from mmfusion.config.use_config import EvaluationConfig, TuneConfig

#: The names of `mmfusion.config.PRESETS`.
Preset = Literal[
    "clip", "siglip", "coca", "albef", "blip", "vilt", "vilbert", "lxmert", "bottleneck", "flamingo", "blip2", "prefix",
    "show_attend_tell",
]  # fmt: skip
PRESET_NAMES: tuple[str, ...] = get_args(Preset)


class Recipe(Section):
    """Everything that an experiment depends on, validated before TensorFlow does any work.

    Example:
        >>> from mmfusion.config import recipe_from_dict
        >>> recipe_from_dict({"name": "a", "train": {"epochs": 3}}).train.epochs
        3
    """

    name: str = Field("experiment", min_length=1, pattern=r"^[\w.-]+$", description="Name in reports and folders.")
    preset: Preset | None = Field(None, description="A published composition; what the recipe does not set, it does.")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Of everything random.")
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    model: ModelConfig = ModelConfig()
    fusion: FusionConfig = FusionConfig()
    translation: TranslationConfig | None = None
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    decoding: DecodingConfig = DecodingConfig()
    tune: TuneConfig | None = None
    quick: dict[str, Any] = Field(default_factory=dict, description="Changes that make it end in a minute or two.")

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        size, patch = self.data.size, self.model.image_encoder.patch_size
        if size[0] % patch or size[1] % patch:
            raise ValueError(f"model.image_encoder.patch_size: expected a divisor of data.image_size {list(size)}, found {patch}")
        kind, frames = self.model.image_encoder.kind, self.data.frames
        if (kind == "vit") != (frames == 1):
            expected = "1, since model.image_encoder.kind is vit" if kind == "vit" else f"at least 2 for {kind}"
            raise ValueError(f"data.frames: expected {expected}, found {frames}")
        if frames % (self.model.image_encoder.tubelet_size or 1):
            raise ValueError(
                f"model.image_encoder.tubelet_size: expected a divisor of data.frames {frames}, "
                f"found {self.model.image_encoder.tubelet_size}"
            )
        if self.model.fuses:
            # The contrastive head pools what the fusion holds of the image with the fusion's heads.
            model = self.model
            pools = model.contrastive_tokens == "fusion" and model.image_pooling == "attention" and "contrastive" in model.heads
            self._check_fusion("fusion", self.fusion, splits_image=pools and self.fusion.style not in ("qformer", "resampler"))
        else:
            self._check_no_fusion()
        if self.translation is not None:
            self._check_fusion("translation.fusion", self.translation.fusion)
            if self.translation.fusion.direction == "image":
                raise ValueError("translation.fusion.direction: expected text or both, since the sentence is read, found image")
        if (self.translation is None) != (self.data.source_language is None):
            wanted, found = ("none", "translation is none") if self.translation is None else ("a language", "none")
            raise ValueError(f"data.source_language: expected {wanted}, found {found}; it goes with translation")
        if self.translation is not None and self.model.heads != ("captioning",):
            raise ValueError(f"model.heads: expected [captioning] alone, since it translates, found {list(self.model.heads)}")
        heads, terms = set(self.model.heads), self.terms
        for term in terms:
            if term not in heads:
                raise ValueError(f"objective.{term}: expected none, since model.heads lacks {term}; set objective.{term}=null")
        if self.fusion.direction == "image" and {"captioning", "masked_language"} & heads:
            raise ValueError("fusion.direction: expected text or both, since the model writes or guesses words, found image")
        if self.fusion.direction == "image" and self.model.matching_tokens == "text" and "matching" in heads:
            raise ValueError("fusion.direction: expected text or both, since model.matching_tokens is text, found image")
        if not terms:
            raise ValueError("objective: expected at least one term, found none")
        momentum = self.objective.momentum
        if momentum is not None and 0 < momentum.queue_size < self.train.batch_size:
            raise ValueError(
                f"objective.momentum.queue_size: expected at least train.batch_size {self.train.batch_size} (or 0), "
                f"found {momentum.queue_size}"
            )
        if self.evaluation.rerank_top_k and "matching" not in heads:
            raise ValueError("evaluation.rerank_top_k: expected 0, since model.heads lacks matching")
        if self.evaluation.rerank_top_k and "contrastive" not in heads:
            raise ValueError("evaluation.rerank_top_k: expected 0, since model.heads lacks contrastive, which finds candidates")
        longest = self.text.max_tokens - 1
        if self.decoding.max_tokens is not None and self.decoding.max_tokens > longest:
            raise ValueError(
                f"decoding.max_tokens: expected at most {longest} (text.max_tokens - 1), found {self.decoding.max_tokens}"
            )
        own = self.decoding.max_tokens
        most, why = (longest, "text.max_tokens - 1") if own is None else (own, "decoding.max_tokens")
        if self.decoding.min_tokens > most:
            raise ValueError(f"decoding.min_tokens: expected at most {most} ({why}), found {self.decoding.min_tokens}")
        figures = self.validation_figures
        for path, figure in (("train.monitor", self.train.monitor), *self._goal()):
            if figure not in figures:
                near = difflib.get_close_matches(figure, figures, n=1)
                fix = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"{path}: expected one of {', '.join(figures)}, found {figure}{fix}")
        return self

    def _check_fusion(self, path: str, fusion: FusionConfig, splits_image: bool = False) -> None:
        """Whether a fusion fits the encoders; `splits_image` says that its heads split the image's width whatever the style."""
        split = ["text_encoder", "image_encoder"] if splits_image or fusion.splits_image else ["text_encoder"]
        for encoder in split:
            dim = getattr(self.model, encoder).dim
            if dim % fusion.num_heads:
                raise ValueError(f"{path}.num_heads: expected a divisor of model.{encoder}.dim {dim}, found {fusion.num_heads}")
        if "qformer" in (fusion.style, fusion.inner) and fusion.depth < 2:
            raise ValueError(
                f"{path}.depth: expected at least 2 with qformer, since text sees the queries a layer after these see the image, "
                f"found {fusion.depth}"
            )

    def _check_no_fusion(self) -> None:
        """Whether a recipe without a fusion asks for a style of it."""
        for option in ("style", *itertools.chain(*STYLE_OPTIONS.values())):
            found = getattr(self.fusion, option)
            if found != FusionConfig.model_fields[option].default:
                raise ValueError(
                    f"fusion.{option}: expected nothing said, since no head of {list(self.model.heads)} reads a fusion, found "
                    f"{found}; add matching, masked_language or captioning to model.heads, or leave it out"
                )

    def _goal(self) -> list[tuple[str, str]]:
        return [] if self.tune is None else [("tune.objective.metric", self.tune.objective.metric)]

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms of the loss that are switched on."""
        return self.objective.terms

    @property
    def validation_figures(self) -> tuple[str, ...]:
        """The figures that a validation of this recipe says."""
        return figures_of(self.model.heads, self.terms)
