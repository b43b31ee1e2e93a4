"""The model that joins everything: encoders, fusion and three heads."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import KerasTensor, ops

from mmfusion.decoding import BeamOutput, DecodeOutput, beam_search, greedy
from mmfusion.encoders import TextCache, TextTransformer, VisionTransformer
from mmfusion.errors import ConfigError
from mmfusion.fusion import Fusion, FusionCache
from mmfusion.models.captioning_head import CaptioningHead
from mmfusion.models.contrastive_head import ContrastiveHead
from mmfusion.models.matching_head import MatchingHead


class CaptionState(NamedTuple):
    """What decoding carries from token to token.

    Attributes:
        text: Cache of the text encoder.
        fusion: Cache of the fusion, with the image's keys and values.
    """

    text: TextCache
    fusion: FusionCache


@keras.saving.register_keras_serializable(package="mmfusion")
class ImageTextModel(keras.Model):
    """Joins an image encoder and a text encoder for retrieval, matching and captioning.

    - Contrastive head: each stream alone, into a shared space (`encode_image`, `encode_text`).
    - Matching head: text read both ways, fused with the image (`match`).
    - Captioning head: text read left to right, fused with the image (`caption`).

    A head that is None is left out, with its methods.

    Args:
        image_encoder: A layer from ``float[B, H, W, 3]`` to ``float[B, P, Di]`` with ``image_size``, ``grid`` and ``dim``.
        text_encoder: A layer with the contract of `TextTransformer`.
        fusion: A `Fusion`; needed by the matching and captioning heads.
        contrastive_head: A `ContrastiveHead`, or None.
        matching_head: A `MatchingHead`, or None.
        captioning_head: A `CaptioningHead`, or None.

    Call arguments:
        inputs: A dictionary with ``image`` (``float[B, H, W, 3]``), ``token_ids`` (``int[B, T]``) and ``token_mask``
            (``bool[B, T]``, ``True`` = real token).
        training: Whether dropout is active.

    Returns:
        A dictionary with what its heads give: ``image_embedding`` and ``text_embedding`` (``float32[B, E]``),
        ``match_logits`` (``float32[B]``), ``caption_logits`` (``float[B, T, V]``: at t the scores of token t + 1).

    Raises:
        ConfigError: If no head is given, a head lacks its fusion, or the fusion cannot be causal and the model captions.

    Example:
        >>> import numpy as np
        >>> from mmfusion.encoders import TextTransformer, VisionTransformer
        >>> from mmfusion.fusion import CrossFusion
        >>> from mmfusion.models import CaptioningHead, ContrastiveHead, ImageTextModel, MatchingHead
        >>> model = ImageTextModel(
        ...     image_encoder=VisionTransformer(image_size=16, patch_size=8, dim=16, depth=1, num_heads=2),
        ...     text_encoder=TextTransformer(vocabulary_size=30, max_length=6, dim=16, depth=1, num_heads=2),
        ...     fusion=CrossFusion(dim=16, depth=1, num_heads=2),
        ...     contrastive_head=ContrastiveHead(embedding_dim=8),
        ...     matching_head=MatchingHead(),
        ...     captioning_head=CaptioningHead(start_id=2, end_id=3),
        ... )
        >>> images = np.zeros((2, 16, 16, 3), "float32")
        >>> tuple(model.encode_image(images).shape), tuple(model.caption(images).token_ids.shape)
        ((2, 8), (2, 5))

    Source: Li et al., BLIP, 2022 (arXiv:2201.12086), whose three tasks these are.
    """

    def __init__(
        self,
        *,
        image_encoder: VisionTransformer,
        text_encoder: TextTransformer,
        fusion: Fusion | None = None,
        contrastive_head: ContrastiveHead | None = None,
        matching_head: MatchingHead | None = None,
        captioning_head: CaptioningHead | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if contrastive_head is None and matching_head is None and captioning_head is None:
            raise ConfigError("a model needs at least one head", where=self.name, expected="a head", found="none")
        if fusion is None and (matching_head is not None or captioning_head is not None):
            raise ConfigError(
                "the matching and captioning heads read fused tokens",
                where=self.name,
                expected="a fusion",
                found="none",
                fix="pass fusion=CrossFusion(...), or leave these heads out",
            )
        if captioning_head is not None and fusion is not None and not fusion.supports_causal:
            raise ConfigError(
                "this fusion cannot be causal, so the model cannot caption",
                where=type(fusion).__name__,
                fix="choose another style or leave captioning out",
            )
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.fusion = fusion
        self.contrastive_head = contrastive_head
        self.matching_head = matching_head
        self.captioning_head = captioning_head
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Builds all parts at once: their shapes are known from their constructors."""
        image_shape = (None, *self.image_encoder.image_size, 3)
        patches_shape = (None, self.image_encoder.grid[0] * self.image_encoder.grid[1], self.image_encoder.dim)
        text_shape = (None, self.text_encoder.max_length, self.text_encoder.dim)
        for layer, shapes in (
            (self.image_encoder, (image_shape,)),
            (self.text_encoder, ((None, self.text_encoder.max_length),)),
            (self.fusion, (text_shape, patches_shape)),
            (self.contrastive_head, (patches_shape, text_shape)),
            (self.matching_head, (text_shape,)),
            (self.captioning_head, (text_shape,)),
        ):
            if layer is not None and not layer.built:
                layer.build(*shapes)
        self.built = True

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the heads that this model has."""
        present = {
            "contrastive": self.contrastive_head,
            "matching": self.matching_head,
            "captioning": self.captioning_head,
        }
        return tuple(name for name, head in present.items() if head is not None)

    def encode_image(self, images: KerasTensor, training: bool | None = None) -> KerasTensor:
        """``float[B, H, W, 3]`` to unit-length ``float32[B, E]``."""
        head = self._head("contrastive")
        return head.embed_image(self.image_encoder(images, training=training))

    def encode_text(
        self, token_ids: KerasTensor, token_mask: KerasTensor | None = None, training: bool | None = None
    ) -> KerasTensor:
        """``int[B, T]`` and ``bool[B, T]`` to unit-length ``float32[B, E]``."""
        head = self._head("contrastive")
        return head.embed_text(self.text_encoder(token_ids, token_mask=token_mask, training=training), token_mask)

    def match(
        self,
        images: KerasTensor,
        token_ids: KerasTensor,
        token_mask: KerasTensor | None = None,
        training: bool | None = None,
    ) -> KerasTensor:
        """Logits ``float32[B]`` that text b describes image b; their sigmoid is the probability."""
        self._head("matching")
        patches = self.image_encoder(images, training=training)
        text = self.text_encoder(token_ids, token_mask=token_mask, training=training)
        return self.match_tokens(patches, text, token_mask, training=training)

    def match_tokens(
        self,
        patches: KerasTensor,
        text: KerasTensor,
        token_mask: KerasTensor | None = None,
        training: bool | None = None,
    ) -> KerasTensor:
        """As `match`, from encoded streams ``float[B, P, Di]`` and ``float[B, T, D]``, so that encodings are reused."""
        fused = self._fuse()(text, patches, text_mask=token_mask, training=training)
        return self._head("matching")(fused.text)

    def caption_logits(
        self,
        patches: KerasTensor,
        token_ids: KerasTensor,
        token_mask: KerasTensor | None = None,
        training: bool | None = None,
    ) -> KerasTensor:
        """``float[B, T, V]``: at position t the scores of token t + 1, given the image and tokens up to t."""
        head = self._head("captioning")
        text = self.text_encoder(token_ids, token_mask=token_mask, causal=True, training=training)
        fused = self._fuse()(text, patches, text_mask=token_mask, causal=True, training=training)
        return self.text_encoder.logits(head(fused.text))

    def caption(
        self,
        images: KerasTensor,
        *,
        beam_size: int = 1,
        length_penalty: float = 1.0,
        max_tokens: int | None = None,
        min_tokens: int = 0,
    ) -> DecodeOutput | BeamOutput:
        """Writes captions, with a cache, in graph.

        Args:
            images: ``float[B, H, W, 3]``.
            beam_size: 1 decodes greedily, more searches with so many beams.
            length_penalty: Exponent of the length by which a beam's score is divided.
            max_tokens: Most tokens to write, the end token included. Default: what the text encoder holds.
            min_tokens: Fewest tokens before the end token.

        Returns:
            `DecodeOutput` when `beam_size` is 1, else `BeamOutput`, best beam first.
        """
        return self.caption_patches(
            self.image_encoder(images, training=False),
            beam_size=beam_size,
            length_penalty=length_penalty,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
        )

    def caption_patches(
        self,
        patches: KerasTensor,
        *,
        beam_size: int = 1,
        length_penalty: float = 1.0,
        max_tokens: int | None = None,
        min_tokens: int = 0,
    ) -> DecodeOutput | BeamOutput:
        """As `caption`, from encoded patches ``float[B, P, Di]``."""
        head = self._head("captioning")
        longest = self.text_encoder.max_length - 1
        if max_tokens is not None and not 1 <= max_tokens <= longest:
            raise ConfigError(
                "impossible length of a caption",
                where="max_tokens",
                expected=f"1 to {longest} (the text encoder holds {longest + 1} tokens with the start token)",
                found=max_tokens,
            )
        max_tokens = longest if max_tokens is None else max_tokens
        batch_size = ops.shape(patches)[0]
        state = CaptionState(
            self.text_encoder.init_cache(batch_size, max_tokens),
            self._fuse().init_cache(batch_size, max_tokens, patches),
        )
        options = {
            "batch_size": batch_size,
            "start_id": head.start_id,
            "end_id": head.end_id,
            "pad_id": head.pad_id,
            "max_tokens": max_tokens,
            "min_tokens": min_tokens,
            "forbidden_ids": (head.start_id, *head.forbidden_ids),
        }
        if beam_size == 1:
            return greedy(self.caption_step, state, **options)
        return beam_search(self.caption_step, state, beam_size=beam_size, length_penalty=length_penalty, **options)

    def caption_step(self, token_ids: KerasTensor, state: CaptionState) -> tuple[KerasTensor, CaptionState]:
        """One step of decoding: ``int[N]`` and a state to ``float[N, V]`` and the next state."""
        head = self._head("captioning")
        text, text_cache = self.text_encoder(token_ids[:, None], cache=state.text, training=False)
        fused = self._fuse()(text, cache=state.fusion, causal=True, training=False)
        logits = self.text_encoder.logits(head(fused.text))[:, 0]
        return logits, CaptionState(text_cache, fused.cache)

    def attend(
        self,
        images: KerasTensor,
        token_ids: KerasTensor,
        token_mask: KerasTensor | None = None,
        causal: bool | None = None,
    ) -> KerasTensor:
        """Where each word looks: ``float[B, layers, heads, T, rows, cols]``, each map summing to 1.

        Args:
            images: ``float[B, H, W, 3]``.
            token_ids: ``int[B, T]``.
            token_mask: ``bool[B, T]``, ``True`` = real token. Default: all real.
            causal: Whether the text is read left to right, as when it is written. Default: if the model can do nothing
                but caption, since its weights know no other reading.
        """
        if causal is None:
            causal = self.heads == ("captioning",)
        patches = self.image_encoder(images, training=False)
        text = self.text_encoder(token_ids, token_mask=token_mask, causal=causal, training=False)
        fused = self._fuse()(text, patches, text_mask=token_mask, causal=causal, return_scores=True, training=False)
        scores = fused.scores
        shape = ops.shape(scores)
        return ops.reshape(scores, (*shape[:4], *self.image_encoder.grid))

    def call(self, inputs: dict[str, KerasTensor], training: bool | None = None) -> dict[str, KerasTensor]:
        """Runs every head; see the class."""
        token_ids, token_mask = inputs["token_ids"], inputs.get("token_mask")
        patches = self.image_encoder(inputs["image"], training=training)
        outputs: dict[str, KerasTensor] = {}
        if self.contrastive_head is not None or self.matching_head is not None:
            text = self.text_encoder(token_ids, token_mask=token_mask, training=training)
        if self.contrastive_head is not None:
            outputs["image_embedding"] = self.contrastive_head.embed_image(patches)
            outputs["text_embedding"] = self.contrastive_head.embed_text(text, token_mask)
        if self.matching_head is not None:
            outputs["match_logits"] = self.match_tokens(patches, text, token_mask, training=training)
        if self.captioning_head is not None:
            outputs["caption_logits"] = self.caption_logits(patches, token_ids, token_mask, training=training)
        return outputs

    def export(self, *arguments: Any, **options: Any) -> None:
        """Not how this model is exported: signatures of files and sentences need its tokenizer and its image transform.

        Raises:
            ConfigError: Always, with the way that works.
        """
        raise ConfigError(
            "a model alone does not know its tokenizer and image transform",
            where=self.name,
            fix="train it with mmfusion.training.train and call mmfusion.export.export_model(load_run(RUN), FOLDER), "
            "or: mmfusion export RUN --output FOLDER",
        )

    def _fuse(self) -> Fusion:
        if self.fusion is None:
            raise ConfigError("this model has no fusion", where=self.name, fix="build it with fusion=...")
        return self.fusion

    def _head(self, name: str) -> Any:
        head = getattr(self, f"{name}_head")
        if head is None:
            raise ConfigError(
                f"this model has no {name} head",
                where=self.name,
                expected=f"a {name} head",
                found=", ".join(self.heads),
                fix=f"build it with {name}_head=... (in a recipe: model.heads)",
            )
        return head

    def get_config(self) -> dict[str, Any]:
        """The parts, serialised."""
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            **{part: serialize(getattr(self, part)) for part in _PARTS},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> ImageTextModel:
        """Rebuilds the model from `get_config`."""
        config = dict(config)
        for part in _PARTS:
            config[part] = keras.saving.deserialize_keras_object(config[part], custom_objects=custom_objects)
        return cls(**config)


_PARTS = ("image_encoder", "text_encoder", "fusion", "contrastive_head", "matching_head", "captioning_head")
