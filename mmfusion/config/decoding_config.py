"""How captions are written."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from mmfusion.config.section import Section

Positive = Annotated[int, Field(ge=1)]


class DecodingConfig(Section):
    """How captions are written. What belongs to another method than the chosen one waits for its turn."""

    method: Literal["greedy", "beam", "sample", "contrastive"] = Field(
        "greedy", description="Greedy, beam search, sampling, or contrastive search."
    )
    max_tokens: Positive | None = Field(None, description="Longest caption; none takes text.max_tokens - 1.")
    min_tokens: Annotated[int, Field(ge=0)] = Field(0, description="Shortest caption.")
    repetition_penalty: Annotated[float, Field(ge=1)] = Field(1.0, description="Factor of log p for words that were written.")
    no_repeat_ngram: Annotated[int, Field(ge=0)] = Field(0, description="No run of so many tokens comes twice; 0: no such rule.")
    beam_size: Annotated[int, Field(ge=2)] = Field(3, description="Beams of beam search.")
    length_penalty: float = Field(1.0, description="Exponent of the length that divides a beam's score.")
    num_groups: Positive = Field(1, description="Groups of beams that avoid each other's words.")
    diversity_penalty: Annotated[float, Field(ge=0)] = Field(0.5, description="By how much they avoid them.")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="Of sampling: below 1 sharpens.")
    top_k: Positive | None = Field(None, description="Likeliest tokens that sampling and contrastive search choose from.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Probability of the nucleus that sampling draws from.")
    num_samples: Positive = Field(1, description="Drawn captions an image, of which the likeliest counts.")
    seeds: int = Field(0, description="Seed of sampling.")
    alpha: Annotated[float, Field(ge=0, le=1)] = Field(0.6, description="Weight of what is new in contrastive search.")

    common: ClassVar[tuple[str, ...]] = ("max_tokens", "min_tokens", "repetition_penalty", "no_repeat_ngram")
    of_method: ClassVar[dict[str, tuple[str, ...]]] = {
        "greedy": (),
        "beam": ("beam_size", "length_penalty", "num_groups", "diversity_penalty"),
        "sample": ("temperature", "top_k", "top_p", "num_samples", "seeds"),
        "contrastive": ("top_k", "alpha"),
    }

    def options(self, method: str | None = None) -> dict[str, Any]:
        """As `mmfusion.models.ImageTextModel.caption` takes them: those that are not at their defaults, and the method.

        Args:
            method: As if this were the method. Default: the recipe's.

        Example:
            >>> from mmfusion.config import DecodingConfig
            >>> DecodingConfig(method="beam", beam_size=4, temperature=0.5).options()
            {'method': 'beam', 'beam_size': 4}
            >>> DecodingConfig(method="beam", beam_size=4, temperature=0.5).options("sample")
            {'method': 'sample', 'temperature': 0.5}
        """
        method = method or self.method
        own = (*self.common, *self.of_method[method])
        defaults = {name: type(self).model_fields[name].default for name in own}
        chosen = {name: getattr(self, name) for name in own if getattr(self, name) != defaults[name] or name == "beam_size"}
        return {"method": method, **chosen}
