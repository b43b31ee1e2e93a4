"""Evaluation and search."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmfusion.config.figures import lower_is_better
from mmfusion.config.section import Section

Positive = Annotated[int, Field(ge=1)]


class EvaluationConfig(Section):
    """What `mmfusion evaluate` measures."""

    split: str | None = Field(None, description="Split to measure on; none takes data.validation_split.")
    gallery: Literal["split", "all"] = Field("split", description="Retrieve within the split or among all splits.")
    rerank_top_k: Annotated[int, Field(ge=0)] = Field(0, description="Candidates that the matching head reorders; 0 does not.")
    fuse: float = Field(0.0, description="Weight of the dual encoder's cosine similarity beside the matching logit in reranking.")
    retrieval_images: Annotated[int, Field(ge=0)] = Field(
        64, description="Images among which a model that matches but does not embed is asked for every pair; 0 does not."
    )
    captions: bool = Field(True, description="Whether to write and score captions.")
    caption_images: Positive | None = Field(None, description="Only so many images are captioned.")


class RangeConfig(Section):
    """A range or a choice of a value to search."""

    choices: tuple[Any, ...] | None = Field(None, description="Values to choose from.")
    min: float | None = Field(None, description="Smallest value.")
    max: float | None = Field(None, description="Largest value.")
    sampling: Literal["linear", "log"] = Field("linear", description="How values are spread.")
    step: float | None = Field(None, description="Distance of neighbouring values.")
    type: Literal["float", "int"] = Field("float", description="Kind of number.")

    @model_validator(mode="after")
    def _one_kind(self) -> RangeConfig:
        if self.choices is not None:
            if not self.choices or self.min is not None or self.max is not None:
                raise ValueError("choices: expected at least one value, and neither min nor max beside it")
        elif self.min is None or self.max is None or not self.min < self.max:
            raise ValueError(f"min: expected choices, or min < max, found min {self.min} and max {self.max}")
        elif self.sampling == "log" and self.min <= 0:
            raise ValueError(f"min: expected a positive number for log sampling, found {self.min}")
        return self


class GoalConfig(Section):
    """What a search is after."""

    metric: str = Field("val_rsum", description="A figure of the validation.")
    direction: Literal["max", "min"] | None = Field(None, description="Whether more or less is better; none knows by the metric.")

    @model_validator(mode="after")
    def _sensible(self) -> GoalConfig:
        right = "min" if lower_is_better(self.metric) else "max"
        if self.direction not in (None, right):
            raise ValueError(f"direction: expected {right} for {self.metric}, found {self.direction}")
        return self

    @property
    def wanted(self) -> Literal["max", "min"]:
        """The direction in use."""
        return "min" if lower_is_better(self.metric) else "max"


class TuneConfig(Section):
    """A search over ranges of the recipe."""

    tuner: Literal["random", "bayesian", "hyperband"] = Field("random", description="KerasTuner's strategy.")
    max_trials: Positive = Field(10, description="Trials (hyperband makes its own schedule).")
    epochs: Positive | None = Field(None, description="Epochs of a trial; none takes train.epochs.")
    objective: GoalConfig = GoalConfig()
    keep_best: Positive = Field(1, description="Trials whose weights are kept.")
    space: dict[str, RangeConfig] = Field(default_factory=dict, description="Ranges by dotted path.")
