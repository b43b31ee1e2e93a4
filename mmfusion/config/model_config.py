"""The model: encoders, fusion, heads and text."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from mmfusion.config.section import Section

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Kernel = Literal["exact", "chunked"]
Head = Literal["contrastive", "matching", "captioning"]
#: The door for further fusion styles: a word here, a class in `mmfusion.fusion.STYLES`.
FusionStyle = Literal["cross"]
FUSION_STYLES: tuple[str, ...] = get_args(FusionStyle)


class TextConfig(Section):
    """The tokenizer."""

    vocabulary: str | None = Field(None, description="A vocabulary file; none trains one on the training captions.")
    vocabulary_size: Annotated[int, Field(ge=10)] = Field(8000, description="Size of a trained vocabulary.")
    lowercase: bool = Field(True, description="Drop case and accents.")
    max_tokens: Annotated[int, Field(ge=3)] = Field(32, description="Longest text, the two special tokens included.")


class _Transformer(Section):
    dim: Positive = Field(256, description="Width of the tokens.")
    depth: Positive = Field(6, description="Transformer blocks.")
    num_heads: Positive = Field(4, description="Attention heads.")
    mlp_ratio: Annotated[float, Field(gt=0.0)] = Field(4.0, description="Hidden width of feed-forward parts over dim.")
    dropout: Rate = Field(0.0, description="Dropout rate.")
    kernel: Kernel = Field("exact", description="How attention is computed.")

    @model_validator(mode="after")
    def _heads_divide(self) -> _Transformer:
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of dim {self.dim}, found {self.num_heads}")
        return self


class ImageEncoderConfig(_Transformer):
    """The vision transformer."""

    patch_size: Positive = Field(16, description="Side of a patch in pixels.")
    stochastic_depth: Rate = Field(0.0, description="Rate of dropping the last block; grows linearly with depth.")


class TextEncoderConfig(_Transformer):
    """The text transformer."""

    depth: Positive = Field(4, description="Transformer blocks.")


class ModelConfig(Section):
    """Encoders and heads."""

    image_encoder: ImageEncoderConfig = ImageEncoderConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    embedding_dim: Positive = Field(256, description="Width of the shared embedding space.")
    heads: tuple[Head, ...] = Field(("contrastive", "matching", "captioning"), min_length=1, description="What it can do.")

    @model_validator(mode="after")
    def _each_once(self) -> ModelConfig:
        if len(set(self.heads)) < len(self.heads):
            raise ValueError(f"heads: expected each head once, found {list(self.heads)}")
        return self


class FusionConfig(Section):
    """How text and image are joined."""

    style: FusionStyle = Field("cross", description="The fusion style.")
    depth: Positive = Field(2, description="Fusion layers.")
    num_heads: Positive = Field(4, description="Attention heads.")
    mlp_ratio: Annotated[float, Field(gt=0.0)] = Field(4.0, description="Hidden width of feed-forward parts over dim.")
    dropout: Rate = Field(0.0, description="Dropout rate.")
    kernel: Kernel = Field("exact", description="How attention is computed.")
