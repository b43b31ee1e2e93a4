"""The model: encoders, fusion, heads and text."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mmfusion.config.fusion_config import Gain, Kernel, Positive, Rate, check_kernel
from mmfusion.config.section import Section

Head = Literal["contrastive", "matching", "masked_language", "captioning"]
#: What the encoders' constructors take themselves; every other option goes to each of their blocks.
_OWN = (
    "patch_size", "dim", "depth", "num_heads", "mlp_ratio", "dropout", "attention_dropout", "stochastic_depth", "layer_scale",
    "kernel", "positions",
)  # fmt: skip
_OF_CLIPS = ("kind", "tubelet_size", "attention", "joint_depth")
_OF_ATTENTION = ("logit_cap", "window", "num_global_tokens")


class TextConfig(Section):
    """The tokenizer."""

    vocabulary: str | None = Field(None, description="A vocabulary file; none trains one on the training captions.")
    vocabulary_size: Annotated[int, Field(ge=10)] = Field(8000, description="Size of a trained vocabulary.")
    lowercase: bool = Field(True, description="Drop case and accents.")
    max_tokens: Annotated[int, Field(ge=3)] = Field(32, description="Longest text, the two special tokens included.")


class _Transformer(Section):
    dim: Positive = Field(256, description="Width of the tokens.")
    depth: Annotated[int, Field(ge=0)] = Field(6, description="Transformer blocks; 0 leaves the embedding alone.")
    num_heads: Positive = Field(4, description="Attention heads.")
    mlp_ratio: Annotated[float, Field(gt=0.0)] = Field(4.0, description="Hidden width of feed-forward parts over dim.")
    dropout: Rate = Field(0.0, description="Dropout rate.")
    attention_dropout: Rate = Field(0.0, description="Dropout rate of attention weights.")
    stochastic_depth: Rate = Field(0.0, description="Rate of dropping the last block; grows linearly with depth.")
    layer_scale: Gain | None = Field(None, description="Initial gain of each branch; none has no gain.")
    kernel: Kernel = Field("exact", description="How attention is computed.")
    num_key_value_heads: Positive | None = Field(None, description="Heads of keys and values; none as many as num_heads.")
    query_key_norm: bool = Field(False, description="Normalise queries and keys.")
    logit_cap: Gain | None = Field(None, description="Bound of attention's logits; none has no bound.")
    window: Positive | None = Field(None, description="Tokens on each side that kernel local sees.")
    num_global_tokens: Positive | None = Field(None, description="Leading tokens that see all and are seen by all (local).")
    rotary: bool = Field(False, description="Rotate queries and keys by position.")
    positions: Literal["learned", "sinusoidal", "none"] = Field("learned", description="Positions added to the embedding.")

    _position_axes: ClassVar[int] = 1

    @model_validator(mode="after")
    def _heads_divide(self) -> _Transformer:
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of dim {self.dim}, found {self.num_heads}")
        if self.num_key_value_heads is not None and self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads: expected a divisor of num_heads {self.num_heads}, found {self.num_key_value_heads}"
            )
        width, multiple = self.dim // self.num_heads, 4 if self.rotary == "2d" else 2
        if self.rotary and self.depth and width % multiple:
            raise ValueError(f"num_heads: expected heads of a width that rotary divides by {multiple}, found a width of {width}")
        axes = self._position_axes
        if self.positions == "sinusoidal" and self.dim % (2 * axes):
            raise ValueError(f"dim: expected a multiple of {2 * axes} with sinusoidal positions, found {self.dim}")
        names = (*_OF_ATTENTION, "attention_dropout", "rotary")
        check_kernel(self.kernel, **{name: getattr(self, name) for name in names})
        return self

    def options(self) -> dict[str, Any]:
        """The arguments of the encoder's class, those of its blocks among them.

        Example:
            >>> from mmfusion.config import TextEncoderConfig
            >>> TextEncoderConfig(query_key_norm=True, logit_cap=50.0).options()["block_options"]
            {'query_key_norm': True, 'attention_options': {'logit_cap': 50.0}}
        """
        options = self.model_dump()
        own = {name: options.pop(name) for name in _OWN if name in options}
        options = {name: value for name, value in options.items() if value not in (None, False)}
        attention = {name: options.pop(name) for name in _OF_ATTENTION if name in options}
        return own | {"block_options": options | ({"attention_options": attention} if attention else {})}


class ImageEncoderConfig(_Transformer):
    """The image encoder: of pictures, clips or several images."""

    _position_axes: ClassVar[int] = 2

    kind: Literal["vit", "video", "multi"] = Field(
        "vit", description="One picture, a clip, or several images; the last two need data.frames above 1."
    )
    patch_size: Positive = Field(16, description="Side of a patch in pixels.")
    rotary: bool | Literal["2d"] = Field(False, description="Rotate queries and keys by position: along the patches, or 2d.")  # type: ignore[assignment]
    tubelet_size: Positive | None = Field(None, description="Of video: frames that a token reaches over; none is 1.")
    attention: Literal["tiled", "factorised"] | None = Field(
        None, description="Of video: among all tokens, or within frames and then across them; none is tiled."
    )
    joint_depth: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Of multi: transformer blocks over the tokens of all images; none is 1."
    )

    @model_validator(mode="after")
    def _known_to_kind(self) -> ImageEncoderConfig:
        for option, kind in (("tubelet_size", "video"), ("attention", "video"), ("joint_depth", "multi")):
            if getattr(self, option) is not None and self.kind != kind:
                raise ValueError(f"{option}: expected none, since kind {self.kind} does not know it (kind {kind} does)")
        if self.kind == "video" and self.positions != "learned":
            raise ValueError(f"positions: expected learned for kind video, found {self.positions}")
        if self.rotary and (self.attention == "factorised" or (self.kind == "video" and self.rotary == "2d")):
            found = self.rotary if isinstance(self.rotary, str) else "true"
            raise ValueError(f"rotary: expected false for attention {self.attention or 'tiled'} over clips, found {found}")
        return self

    def options(self) -> dict[str, Any]:
        """The arguments of the encoder's class; of ``multi``, of the encoder of each image. `clip_options` has the others."""
        options = super().options()
        options["block_options"] = {name: value for name, value in options["block_options"].items() if name not in _OF_CLIPS}
        return options

    def clip_options(self) -> dict[str, Any]:
        """What ``video`` and ``multi`` know beside `options`, where it is set."""
        return {name: value for name in _OF_CLIPS[1:] if (value := getattr(self, name)) is not None}


class TextEncoderConfig(_Transformer):
    """The text transformer."""

    depth: Annotated[int, Field(ge=0)] = Field(4, description="Transformer blocks; 0 leaves the embedding alone.")


class ModelConfig(Section):
    """Encoders and heads."""

    image_encoder: ImageEncoderConfig = ImageEncoderConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    embedding_dim: Positive = Field(256, description="Width of the shared embedding space.")
    heads: tuple[Head, ...] = Field(("contrastive", "matching", "captioning"), min_length=1, description="What it can do.")
    image_pooling: Literal["mean", "first", "attention"] = Field("mean", description="How image tokens become an embedding.")
    text_pooling: Literal["mean", "first", "last", "attention"] = Field("mean", description="How a text becomes an embedding.")
    pooling_mlp_ratio: Annotated[float, Field(gt=0.0)] | None = Field(
        None,
        description="Hidden width over the tokens' of a feed-forward part after pooling by attention (SigLIP: 4); none: without.",
    )
    causal_text: bool = Field(False, description="Read text left to right for the embedding, as CLIP and CoCa do.")
    contrastive_tokens: Literal["encoder", "fusion"] = Field(
        "encoder", description="Embed the encoder's patches, or what the fusion makes of them before it knows a text (BLIP-2)."
    )
    matching_tokens: Literal["text", "image", "both"] | None = Field(
        None, description="What the matching head reads of the fusion; none: text, or the image where text is not informed."
    )
    image_queries: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Learned queries that pool the image for the fusion (CoCa); none: it reads all patches."
    )

    @model_validator(mode="after")
    def _each_once(self) -> ModelConfig:
        if len(set(self.heads)) < len(self.heads):
            raise ValueError(f"heads: expected each head once, found {list(self.heads)}")
        if self.pooling_mlp_ratio is not None and "attention" not in (self.image_pooling, self.text_pooling):
            raise ValueError("pooling_mlp_ratio: expected none, since nothing is pooled by attention, found a number")
        return self

    @property
    def fuses(self) -> bool:
        """Whether any head reads what a fusion makes."""
        return self.contrastive_tokens == "fusion" or any(head != "contrastive" for head in self.heads)
