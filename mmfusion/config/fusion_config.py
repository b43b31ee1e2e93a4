"""How text and image are joined: the style by name, what all styles take, and what each style alone takes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from mmfusion.config.section import Section

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Gain = Annotated[float, Field(gt=0.0)]
Kernel = Literal["exact", "chunked", "local", "linear"]
Activation = Literal["gelu", "tanh_gelu", "quick_gelu", "relu", "silu"]
#: The door for further fusion styles: a word here, what it alone takes in `STYLE_OPTIONS`, a class in `mmfusion.fusion.STYLES`.
FusionStyle = Literal["late", "cross", "co", "merged", "bottleneck", "gated", "qformer", "resampler", "recurrent"]
FUSION_STYLES: tuple[str, ...] = get_args(FusionStyle)
STYLE_OPTIONS: dict[str, tuple[str, ...]] = {
    "late": (),
    "cross": ("direction", "norm_first", "context_norm", "feed_forward_between", "activation"),
    "co": ("shared_cross", "norm_first"),
    "merged": ("norm_first",),
    "bottleneck": ("num_bottlenecks",),
    "gated": ("self_attention",),
    "qformer": ("num_queries", "cross_every", "norm_first"),
    "resampler": ("num_latents", "resampler_depth", "inner"),
    "recurrent": ("attention",),
}
#: The kernels of the styles that do not take all, as their classes refuse the others.
STYLE_KERNELS: dict[str, tuple[str, ...]] = {"merged": ("exact", "chunked", "linear"), "recurrent": ("exact",)}


def check_kernel(kernel: str, *, attention_dropout: float = 0.0, **options: Any) -> None:
    """Refuses options of attention that a kernel has no use for.

    Args:
        kernel: The kernel.
        attention_dropout: Needs the exact kernel. Default 0.
        **options: Others by name: ``window`` and ``num_global_tokens`` need the local kernel, ``logit_cap`` and ``rotary`` any
            but the linear one; none, 0 and False are not set.

    Raises:
        ValueError: With the option.
    """
    meant = {"window": kernel == "local", "num_global_tokens": kernel == "local"}
    for name, value in {"attention_dropout": attention_dropout, **options}.items():
        fits = kernel == "exact" if name == "attention_dropout" else meant.get(name, kernel != "linear")
        if value and not fits:
            raise ValueError(f"{name}: expected none, since kernel {kernel} has no use for it, found {value}")


class FusionConfig(Section):
    """How text and image are joined. Options that only some styles take are none unless set: the style's own default."""

    style: FusionStyle = Field("cross", description="The fusion style.")
    depth: Positive = Field(2, description="Fusion layers.")
    num_heads: Positive = Field(4, description="Attention heads.")
    mlp_ratio: Annotated[float, Field(gt=0.0)] = Field(4.0, description="Hidden width of feed-forward parts over dim.")
    dropout: Rate = Field(0.0, description="Dropout rate.")
    attention_dropout: Rate = Field(0.0, description="Dropout rate of attention weights.")
    stochastic_depth: Rate = Field(0.0, description="Rate of dropping the last layer; grows linearly with depth.")
    layer_scale: Gain | None = Field(None, description="Initial gain of each branch; none has no gain.")
    kernel: Kernel = Field("exact", description="How attention is computed.")
    modality_dropout: Rate = Field(0.0, description="Share of the examples that lose their text or their image in training.")
    direction: Literal["text", "image", "both"] | None = Field(None, description="Who queries whom (cross).")
    shared_cross: bool | None = Field(None, description="One cross-attention for both directions, as LXMERT (co).")
    norm_first: bool | None = Field(
        None, description="Normalise before each part, or after it as BERT (cross, co, merged, qformer)."
    )
    context_norm: bool | None = Field(None, description="Normalise what a block looks at (cross).")
    feed_forward_between: bool | None = Field(None, description="A feed-forward part after the self-attention too (cross).")
    activation: Activation | None = Field(None, description="Of the feed-forward parts (cross).")
    num_bottlenecks: Positive | None = Field(None, description="Tokens between the streams (bottleneck).")
    self_attention: bool | None = Field(None, description="A language block after each gated cross-attention (gated).")
    num_queries: Positive | None = Field(None, description="Learned queries (qformer).")
    cross_every: Positive | None = Field(None, description="Layers from one look at the image to the next (qformer).")
    num_latents: Positive | None = Field(None, description="Latents that stand for the image (resampler).")
    resampler_depth: Positive | None = Field(None, description="Layers of the resampler itself (resampler).")
    inner: FusionStyle | None = Field(None, description="Style that joins text and latents (resampler).")
    attention: Literal["additive", "multiplicative"] | None = Field(None, description="How the state asks patches (recurrent).")

    @model_validator(mode="after")
    def _known_to_the_style(self) -> FusionConfig:
        check_kernel(self.kernel, attention_dropout=self.attention_dropout)
        for style in self._styles:
            kernels = STYLE_KERNELS.get(style, get_args(Kernel))
            if self.kernel not in kernels:
                raise ValueError(f"kernel: expected {' or '.join(kernels)} with style {style}, found {self.kernel}")
        if self.inner == "resampler":
            raise ValueError("inner: expected another style than the resampler itself, found resampler")
        known = {option for style in self._styles for option in STYLE_OPTIONS[style]}
        for option in (option for options in STYLE_OPTIONS.values() for option in options):
            if option in known or getattr(self, option) is None:
                continue
            having = " and ".join(style for style, options in STYLE_OPTIONS.items() if option in options)
            raise ValueError(
                f"{option}: expected none, since style {self.style} has no {option} (style {having} has), "
                f"found {getattr(self, option)}"
            )
        return self

    @property
    def _styles(self) -> tuple[str, ...]:
        """The style, and the one inside it."""
        return (self.style, self.inner or "cross") if self.style == "resampler" else (self.style,)

    @property
    def splits_image(self) -> bool:
        """Whether heads split the width of the image's tokens too, not that of the text alone."""
        return (self.style == "co" and not self.shared_cross) or (self.style == "cross" and self.direction in ("image", "both"))

    def options(self) -> dict[str, Any]:
        """The arguments of the style's class that the recipe sets; those of a resampler's inner style together.

        Example:
            >>> from mmfusion.config import FusionConfig
            >>> sorted(set(FusionConfig(style="bottleneck", num_bottlenecks=2).options()) - set(FusionConfig().options()))
            ['num_bottlenecks']
        """
        options = self.model_dump(exclude={"style", "modality_dropout"})
        options = {name: value for name, value in options.items() if value is not None}
        names = [name for style in self._styles[1:] for name in STYLE_OPTIONS[style]]
        inner = {name: options.pop(name) for name in names if name in options}
        return options | ({"inner_options": inner} if inner else {})
