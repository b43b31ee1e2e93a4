"""Objectives and training."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmfusion.config.section import Section

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Smoothing = Annotated[float, Field(ge=0.0, lt=1.0)]
_Z_LOSS = "Weight of the squared log-partition; none takes objective.z_loss."


#: Every term of the loss, and the head that it needs.
TERMS = ("contrastive", "matching", "masked_language", "captioning")


class ContrastiveConfig(Section):
    """The contrastive term."""

    weight: Weight = Field(1.0, description="Factor in the loss.")
    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="Softmax over the batch (CLIP) or a sigmoid a pair (SigLIP)."
    )
    label_smoothing: Smoothing = Field(0.0, description="Share of the target spread over all; softmax alone.")
    z_loss: Weight | None = Field(None, description=f"{_Z_LOSS} Softmax alone.")

    @model_validator(mode="after")
    def _smooth(self) -> ContrastiveConfig:
        for name, value in (("label_smoothing", self.label_smoothing), ("z_loss", self.z_loss)):
            if self.loss == "sigmoid" and value:
                raise ValueError(f"{name}: expected 0 with loss sigmoid, found {value}")
        return self


class MatchingConfig(Section):
    """The matching term, with hard negatives."""

    weight: Weight = Field(1.0, description="Factor in the loss.")


class CaptioningConfig(Section):
    """The captioning term."""

    weight: Weight = Field(1.0, description="Factor in the loss.")
    label_smoothing: Smoothing = Field(0.1, description="Share of the target spread over the vocabulary.")
    z_loss: Weight | None = Field(None, description=_Z_LOSS)
    attention_coverage: Weight = Field(0.0, description="Weight of looking at every patch alike over a caption.")


class MaskedLanguageConfig(Section):
    """The masked language term: hidden words guessed from the rest and the image."""

    weight: Weight = Field(1.0, description="Factor in the loss.")
    rate: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.15, description="Share of the words that are hidden.")
    z_loss: Weight | None = Field(None, description=_Z_LOSS)


class MomentumConfig(Section):
    """Distillation from a momentum copy of the model, with a queue of its features."""

    decay: Share = Field(0.995, description="How much of the copy stays at a step.")
    queue_size: Annotated[int, Field(ge=0)] = Field(4096, description="Earlier pairs to compare with; 0 for none.")
    alpha: Share = Field(0.4, description="Share of the copy in the targets.")
    warmup: Share = Field(0.1, description="Share of the steps in which alpha grows from 0.")


class ObjectiveConfig(Section):
    """The terms of the loss; none switches a term off."""

    contrastive: ContrastiveConfig | None = ContrastiveConfig()
    matching: MatchingConfig | None = MatchingConfig()
    captioning: CaptioningConfig | None = CaptioningConfig()
    masked_language: MaskedLanguageConfig | None = None
    momentum: MomentumConfig | None = Field(None, description="Learn from a momentum copy too; none does not.")
    z_loss: Weight = Field(0.0, description="Weight of the squared log-partition in every softmax term.")

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms that are switched on."""
        return tuple(name for name in TERMS if getattr(self, name) is not None)

    def z_loss_of(self, term: str) -> float:
        """The weight of the squared log-partition in a term: its own, or the common one.

        Example:
            >>> from mmfusion.config import ObjectiveConfig
            >>> objective = ObjectiveConfig(z_loss=1e-4, captioning={"z_loss": 0.0})
            >>> objective.z_loss_of("contrastive"), objective.z_loss_of("captioning")
            (0.0001, 0.0)
        """
        section = getattr(self, term)
        if getattr(section, "loss", None) == "sigmoid":
            return 0.0
        return self.z_loss if section.z_loss is None else float(section.z_loss)

    @model_validator(mode="after")
    def _taught(self) -> ObjectiveConfig:
        if self.momentum is not None:
            if self.contrastive is not None and self.contrastive.loss == "sigmoid":
                raise ValueError("momentum: expected none, since contrastive.loss is sigmoid, which has no choice to distil")
            if self.contrastive is None and self.masked_language is None:
                raise ValueError("momentum: expected none, since there is no contrastive and no masked_language term to distil")
        return self


class DiagnosticsConfig(Section):
    """What is looked at beside the loss: a few measures of the model's health, with pictures."""

    attention: bool = Field(True, description="Entropy and rank of attention, a head.")
    gradients: bool = Field(True, description="Norms of gradient, weights and update by depth.")
    modality: bool = Field(True, description="Share of image and text in the output.")
    every: Positive = Field(1, description="Epochs between looks.")
    examples: Annotated[int, Field(ge=2)] = Field(16, description="Validation images that are looked at.")


class RecoveryConfig(Section):
    """Going back to the last good weights when the loss blows up."""

    threshold: Annotated[float, Field(gt=0.0)] = Field(8.0, description="Spreads above the median that are too many.")
    minimum_rise: Annotated[float, Field(ge=0.0)] = Field(0.3, description="Rise of the loss below which none is too high.")
    window: Positive = Field(50, description="Good losses that are remembered.")
    history: Positive = Field(10, description="Good losses before a finite loss can be too high.")
    snapshot_every: Positive = Field(20, description="Good steps between snapshots.")
    max_recoveries: Annotated[int, Field(ge=0)] = Field(3, description="Recoveries before the training ends.")
    rate_factor: Annotated[float, Field(gt=0.0, le=1.0)] = Field(1.0, description="Factor of the rate at each recovery.")


class TrainConfig(Section):
    """How it is trained."""

    epochs: Positive = Field(10, description="Passes over the training images.")
    batch_size: Annotated[int, Field(ge=2)] = Field(64, description="Pairs a step, over all devices.")
    learning_rate: Annotated[float, Field(gt=0.0)] = Field(1e-3, description="Highest learning rate.")
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.1, description="Share of the steps that warm up.")
    weight_decay: Weight = Field(0.05, description="Decoupled weight decay of matrices.")
    clip_norm: Annotated[float, Field(gt=0.0)] | None = Field(
        1.0, description="Largest norm of the gradient; none does not clip."
    )
    freeze: tuple[str, ...] = Field((), description="Regular expressions; weights whose path one of them finds stay as they are.")
    beta_2: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.98, description="Decay of AdamW's second moment.")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="Number format of the computation.")
    strategy: Literal["one", "mirrored"] = Field("one", description="One device, or copies on several.")
    devices: Positive | None = Field(None, description="Devices of mirrored; none takes all.")
    jit_compile: bool = Field(False, description="Compile the step with XLA.")
    checkpoint_every: Positive | None = Field(
        None, description="Steps between checkpoints inside an epoch; none goes by the clock."
    )
    checkpoint_minutes: Annotated[float, Field(gt=0.0)] = Field(
        10.0, description="Minutes between checkpoints in an epoch, where checkpoint_every is none."
    )
    keep: Positive = Field(2, description="Checkpoints that are kept.")
    validate_every: Positive = Field(1, description="Epochs between validations.")
    validation_images: Positive | None = Field(None, description="Only so many images in validation.")
    monitor: str = Field("val_rsum", description="The figure to choose the best model by.")
    patience: Positive | None = Field(None, description="Validations without gain before training stops.")
    tensorboard: bool = Field(True, description="Write TensorBoard logs.")
    diagnostics: DiagnosticsConfig | None = Field(None, description="Looks at attention, gradients, modalities; none is off.")
    recovery: RecoveryConfig | None = Field(None, description="Goes back when the loss blows up; none ends the training.")

    @model_validator(mode="after")
    def _patterns(self) -> TrainConfig:
        for pattern in self.freeze:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"freeze: expected regular expressions, found {pattern!r} ({error})") from error
        return self
