"""Objectives and training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmfusion.config.section import Section

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0.0)]
Smoothing = Annotated[float, Field(ge=0.0, lt=1.0)]


class ContrastiveConfig(Section):
    """The contrastive term."""

    weight: Weight = Field(1.0, description="Factor in the loss.")
    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="Softmax over the batch (CLIP) or a sigmoid a pair (SigLIP)."
    )
    label_smoothing: Smoothing = Field(0.0, description="Share of the target spread over all; softmax alone.")

    @model_validator(mode="after")
    def _smooth(self) -> ContrastiveConfig:
        if self.loss == "sigmoid" and self.label_smoothing:
            raise ValueError(f"label_smoothing: expected 0 with loss sigmoid, found {self.label_smoothing}")
        return self


class MatchingConfig(Section):
    """The matching term, with hard negatives."""

    weight: Weight = Field(1.0, description="Factor in the loss.")


class CaptioningConfig(Section):
    """The captioning term."""

    weight: Weight = Field(1.0, description="Factor in the loss.")
    label_smoothing: Smoothing = Field(0.1, description="Share of the target spread over the vocabulary.")


class ObjectiveConfig(Section):
    """The terms of the loss; none switches a term off."""

    contrastive: ContrastiveConfig | None = ContrastiveConfig()
    matching: MatchingConfig | None = MatchingConfig()
    captioning: CaptioningConfig | None = CaptioningConfig()


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
