"""The model that joins everything: encoders, fusion and heads."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import KerasTensor, ops

from mmfusion.decoding import BeamOutput, DecodeOutput, is_eager
from mmfusion.encoders import TextTransformer, VisionTransformer
from mmfusion.errors import ConfigError
from mmfusion.fusion import Fusion, FusionOutput
from mmfusion.layers import AttentionPooling, ModalityDropout
from mmfusion.models.attending import attention_of_words
from mmfusion.models.captioning import Captioner, CaptionState, write_captions
from mmfusion.models.captioning_head import CaptioningHead
from mmfusion.models.composition import HEADS, check_composition
from mmfusion.models.contrastive_head import ContrastiveHead, mean_of_real
from mmfusion.models.embedding import contrasted_image, contrasted_text
from mmfusion.models.fusing import fuse, fusion_of, image_read, num_leading_tokens
from mmfusion.models.masked_language_head import MaskedLanguageHead
from mmfusion.models.matcher import Matcher
from mmfusion.models.matching import match_matrix
from mmfusion.models.matching_head import MatchingHead
from mmfusion.models.number_format import already_quantised, quantised_layers

_PARTS = ("image_encoder", "text_encoder", "fusion", *(f"{name}_head" for name in HEADS), "image_pooling", "modality_dropout")


@keras.saving.register_keras_serializable(package="mmfusion")
class ImageTextModel(keras.Model):
    """Joins an image encoder and a text encoder for retrieval, matching, masked language and captioning.

    - Contrastive head: each stream alone, into a shared space (`encode_image`, `encode_text`).
    - Matching head: text read both ways, fused with the image (`match`).
    - Masked language head: the same reading, hidden tokens guessed (`masked_language_logits`).
    - Captioning head: text read left to right, fused with the image (`caption`).

    A head that is None is left out, with its methods.

    Args:
        image_encoder: A layer from ``float[B, H, W, 3]`` to ``float[B, P, Di]`` with ``image_size``, ``grid`` and ``dim``; or one
            of clips or several images, ``float[B, F, H, W, 3]``, with ``images_shape`` and ``token_mask`` too
            (`mmfusion.encoders.VideoTransformer`, `MultiImageEncoder`).
        text_encoder: A layer with the contract of `TextTransformer`.
        fusion: A `Fusion`; needed by all heads but the contrastive one.
        contrastive_head: A `ContrastiveHead`, or None.
        matching_head: A `MatchingHead`, or None.
        masked_language_head: A `MaskedLanguageHead`, or None.
        captioning_head: A `CaptioningHead`, or None.
        image_pooling: An `AttentionPooling` of several queries: the fusion reads what it pools, not the patches (CoCa). Default
            None.
        modality_dropout: A `ModalityDropout` right before the fusion. Default None.
        causal_text: Whether the contrastive head reads the text left to right (CLIP, CoCa). Default False.
        contrastive_tokens: What the contrastive head reads of the image: the ``"encoder"``'s tokens (of which the first may be a
            class token), what is pooled of them (``"pooling"``, CoCa), or what the ``"fusion"`` makes of them before it knows a
            text (BLIP-2's queries). Default ``"encoder"``.
        contrastive_queries: With ``"pooling"``, how many first queries of `image_pooling` are for the contrastive head alone, so
            that the fusion reads the others; 0 lets both read all. Default 0.
        contrastive_text: What the contrastive head reads of the text: the ``"encoder"``'s tokens, its ``"class_token"``
            (open_clip's CoCa), or what the ``"fusion"`` makes of them without an image (BLIP, whose text encoder and fusion are
            one stack). Default ``"encoder"``.
        matching_tokens: What the matching head reads after the fusion: the first ``"text"`` token, the mean of the ``"image"``
            tokens, or ``"both"`` (ViLBERT). Default ``"text"``; ``"image"`` where the fusion informs the image alone.

    Call arguments:
        inputs: A dictionary with ``image`` (``float[B, H, W, 3]``), ``token_ids`` (``int[B, T]``) and ``token_mask``
            (``bool[B, T]``, ``True`` = real token); of clips, ``image_mask`` (``bool[B, F]``, ``True`` = real picture).
        training: Whether dropout is active.

    Returns:
        A dictionary with what its heads give: ``image_embedding`` and ``text_embedding`` (``float32[B, E]``),
        ``match_logits`` (``float32[B]``), ``masked_language_logits`` (``float[B, T, V]``: at t the scores of token t) and
        ``caption_logits`` (``float[B, T, V]``: at t the scores of token t + 1).

    Raises:
        ConfigError: If no head is given, a head lacks its fusion, the fusion cannot be causal and the model captions, or it does
            not inform the text and a head writes or guesses tokens.

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

    Source: Li et al., ALBEF, 2021 (arXiv:2107.07651) and BLIP, 2022 (arXiv:2201.12086), whose tasks these are.
    """

    def __init__(
        self,
        *,
        image_encoder: VisionTransformer,
        text_encoder: TextTransformer,
        fusion: Fusion | None = None,
        contrastive_head: ContrastiveHead | None = None,
        matching_head: MatchingHead | None = None,
        masked_language_head: MaskedLanguageHead | None = None,
        captioning_head: CaptioningHead | None = None,
        image_pooling: AttentionPooling | None = None,
        modality_dropout: ModalityDropout | None = None,
        causal_text: bool = False,
        contrastive_tokens: str = "encoder",
        contrastive_queries: int = 0,
        contrastive_text: str = "encoder",
        matching_tokens: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.fusion = fusion
        self.contrastive_head = contrastive_head
        self.matching_head = matching_head
        self.masked_language_head = masked_language_head
        self.captioning_head = captioning_head
        self.image_pooling = image_pooling
        self.modality_dropout = modality_dropout
        self.causal_text = causal_text
        self.contrastive_tokens = contrastive_tokens
        self._captioner: Captioner | None = None
        self._matcher: Matcher | None = None
        self.contrastive_queries = contrastive_queries
        self.contrastive_text = contrastive_text
        self.matching_tokens = matching_tokens or ("text" if fusion is None or fusion.informs_text else "image")
        check_composition(self)
        self.build()

    @classmethod
    def from_preset(cls, name: str, *, vocabulary_size: int, **options: Any) -> ImageTextModel:
        """Builds a published composition, with fresh weights.

        Args:
            name: One of `mmfusion.config.PRESETS`: ``"clip"``, ``"albef"``, ``"flamingo"``, …
            vocabulary_size: Number of token ids.
            **options: ``image_size`` (default 224); ``size``, one of ``"tiny"``, ``"small"`` (default) and ``"base"``;
                ``start_id``, ``end_id``, ``pad_id``, ``mask_id`` and ``forbidden_ids`` (default those of a vocabulary that starts
                with [PAD], [UNK], [CLS], [SEP], [MASK]); ``dtype``; and sections of a recipe that change the composition, such
                as ``fusion={"depth": 3}``.

        Returns:
            The model, built.

        Raises:
            ConfigError: If there is no such preset, size or option.

        Example:
            >>> from mmfusion.models import ImageTextModel
            >>> model = ImageTextModel.from_preset("coca", vocabulary_size=100, image_size=32, size="tiny")
            >>> model.heads
            ('contrastive', 'captioning')
        """
        from mmfusion.models.factory import model_from_preset

        return model_from_preset(name, vocabulary_size=vocabulary_size, **options)

    def build(self, input_shape: Any = None) -> None:
        """Builds all parts at once: their shapes are known from their constructors."""
        image, text = self.image_encoder, self.text_encoder
        images_shape = getattr(image, "images_shape", (None, *image.image_size, 3))
        patches_shape = read_shape = (None, num_leading_tokens(image) + math.prod(image.grid), image.dim)
        text_shape = (None, text.max_length, text.dim)
        if self.image_pooling is not None:
            read_shape = (None, self.image_pooling.num_queries - self.contrastive_queries, self.image_pooling.dim or image.dim)
        width = self.fusion.image_width if self.fusion is not None else image.dim
        contrasted = {"encoder": patches_shape, "pooling": read_shape, "fusion": (None, None, width)}[self.contrastive_tokens]
        joined = {"text": (text_shape,), "image": ((None, None, width),), "both": (text_shape, (None, None, width))}
        for layer, shapes in (
            (image, (images_shape,)),
            (text, ((None, text.max_length),)),
            (self.image_pooling, (patches_shape,)),
            (self.fusion, (text_shape, read_shape)),
            (self.contrastive_head, (contrasted, text_shape)),
            (self.matching_head, joined[self.matching_tokens]),
            (self.masked_language_head, (text_shape,)),
            (self.captioning_head, (text_shape,)),
        ):
            if layer is not None and not layer.built:
                layer.build(*shapes)
        self.built = True

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the heads that this model has."""
        return tuple(name for name in HEADS if getattr(self, f"{name}_head") is not None)

    def encode_patches(
        self, images: KerasTensor, image_mask: KerasTensor | None = None, training: bool | None = None
    ) -> tuple[KerasTensor, KerasTensor | None]:
        """Patches ``float[B, P, Di]`` and which are real, ``bool[B, P]``; None where no `image_mask`, ``bool[B, F]``, says it."""
        if image_mask is None:
            return self.image_encoder(images, training=training), None
        patches = self.image_encoder(images, image_mask=image_mask, training=training)
        return patches, self.image_encoder.token_mask(image_mask)

    def encode_image(
        self, images: KerasTensor, training: bool | None = None, image_mask: KerasTensor | None = None
    ) -> KerasTensor:
        """``float[B, H, W, 3]`` to unit-length ``float32[B, E]``."""
        self.head("contrastive")
        patches, patch_mask = self.encode_patches(images, image_mask, training=training)
        return self.embed_patches(patches, training=training, patch_mask=patch_mask)

    def embed_patches(
        self, patches: KerasTensor, training: bool | None = None, patch_mask: KerasTensor | None = None
    ) -> KerasTensor:
        """As `encode_image`, from encoded patches ``float[B, P, Di]``."""
        return self.head("contrastive").embed_image(*contrasted_image(self, patches, patch_mask, training))

    def encode_text(
        self,
        token_ids: KerasTensor,
        token_mask: KerasTensor | None = None,
        training: bool | None = None,
        text: KerasTensor | None = None,
    ) -> KerasTensor:
        """``int[B, T]`` and ``bool[B, T]`` to unit-length ``float32[B, E]``; reuses `text`, read both ways, where it can."""
        return self.head("contrastive").embed_text(*contrasted_text(self, token_ids, token_mask, training, text))

    def match(
        self,
        images: KerasTensor,
        token_ids: KerasTensor,
        token_mask: KerasTensor | None = None,
        training: bool | None = None,
        image_mask: KerasTensor | None = None,
    ) -> KerasTensor:
        """Logits ``float32[B]`` that text b describes image b; their sigmoid is the probability."""
        self.head("matching")
        patches, patch_mask = self.encode_patches(images, image_mask, training=training)
        text = self.text_encoder(token_ids, token_mask=token_mask, training=training)
        return self.match_tokens(patches, text, token_mask, training=training, patch_mask=patch_mask)

    def match_tokens(
        self,
        patches: KerasTensor,
        text: KerasTensor,
        token_mask: KerasTensor | None = None,
        training: bool | None = None,
        patch_mask: KerasTensor | None = None,
    ) -> KerasTensor:
        """As `match`, from encoded streams ``float[B, P, Di]`` and ``float[B, T, D]``, so that encodings are reused."""
        self.head("matching")
        return self.match_fused(*fuse(self, text, patches, token_mask, patch_mask=patch_mask, training=training))

    def match_fused(self, fused: FusionOutput, image_mask: KerasTensor | None = None) -> KerasTensor:
        """As `match`, from streams that are fused, and which of the image's tokens are real, ``bool[B, N]``."""
        head, image = self.head("matching"), fused.image
        if self.matching_tokens == "image":
            return head(mean_of_real(image, image_mask)[:, None])
        return head(fused.text, image=image, image_mask=image_mask)

    def match_matrix(
        self, images: KerasTensor, token_ids: KerasTensor, token_mask: KerasTensor | None = None, **options: Any
    ) -> KerasTensor:
        """Logits ``float32[I, N]`` of all images with all texts, or with the likeliest; see `mmfusion.models.match_matrix`."""
        return match_matrix(self, images, token_ids, token_mask, **options)

    @property
    def matcher(self) -> Matcher:
        """What matches images with many texts outside of a graph; it keeps its graphs."""
        if self._matcher is None:
            self._matcher = Matcher(self)
        return self._matcher

    def masked_language_logits(
        self,
        patches: KerasTensor,
        token_ids: KerasTensor,
        token_mask: KerasTensor | None = None,
        training: bool | None = None,
        patch_mask: KerasTensor | None = None,
    ) -> KerasTensor:
        """``float[B, T, V]``: at position t the scores of what stands there, given the image and the text with hidden tokens."""
        head = self.head("masked_language")
        text = self.text_encoder(token_ids, token_mask=token_mask, training=training)
        fused, _ = fuse(self, text, patches, token_mask, patch_mask=patch_mask, training=training)
        return self.text_encoder.logits(head(fused.text))

    def caption_logits(
        self,
        patches: KerasTensor,
        token_ids: KerasTensor,
        token_mask: KerasTensor | None = None,
        training: bool | None = None,
        return_scores: bool = False,
        patch_mask: KerasTensor | None = None,
    ) -> KerasTensor | tuple[KerasTensor, KerasTensor]:
        """``float[B, T, V]``: at position t the scores of token t + 1, given the image and tokens up to t.

        With `return_scores`, also the attention from text to image of the same pass, ``float32[B, layers, heads, T, P]``.
        """
        head = self.head("captioning")
        text = self.text_encoder(token_ids, token_mask=token_mask, causal=True, training=training)
        options: dict[str, Any] = {"causal": True, "return_scores": return_scores, "training": training}
        fused, _ = fuse(self, text, patches, token_mask, patch_mask=patch_mask, **options)
        logits = head.logits(fused.text, self.text_encoder.logits)
        return (logits, fused.scores) if return_scores else logits

    def caption(self, images: KerasTensor, image_mask: KerasTensor | None = None, **options: Any) -> DecodeOutput | BeamOutput:
        """Writes captions, with a cache, in a graph that is kept for each set of options and each power of two of images.

        Args:
            images: ``float[B, H, W, 3]``, or what else the image encoder reads, each tensor of it with a row for each example.
            image_mask: Of clips, ``bool[B, F]``, ``True`` = real picture. Default: all real.
            **options: As in `mmfusion.models.write_captions`: ``method``, ``beam_size``, ``max_tokens``, ``temperature``, ...; by
                default it decodes greedily, as long as the text encoder holds.

        Returns:
            `DecodeOutput`, or `BeamOutput`, several captions an image, best first, of beam search and sampling.
        """
        self.head("captioning")
        images = keras.tree.map_structure(ops.convert_to_tensor, images)
        if not is_eager(keras.tree.flatten(images)[0]):
            return self._captioned(images, image_mask, **options)
        if self._captioner is None:
            self._captioner = Captioner(self._captioned, self.variables)
        return self._captioner(images, image_mask, options)

    def _captioned(self, images: KerasTensor, image_mask: KerasTensor | None, **options: Any) -> DecodeOutput | BeamOutput:
        patches, patch_mask = self.encode_patches(images, image_mask, training=False)
        return self.caption_patches(patches, patch_mask, **options)

    def caption_patches(
        self, patches: KerasTensor, patch_mask: KerasTensor | None = None, **options: Any
    ) -> DecodeOutput | BeamOutput:
        """As `caption`, from encoded patches ``float[B, P, Di]``, in the graph that it is called in."""
        self.head("captioning")
        return write_captions(self, *image_read(self, patches, patch_mask), **options)

    def caption_step(self, token_ids: KerasTensor, state: CaptionState) -> tuple[KerasTensor, CaptionState]:
        """One step of decoding: ``int[N]`` and a state to ``float[N, V]`` and the next state."""
        head = self.head("captioning")
        text, text_cache = self.text_encoder(token_ids[:, None], cache=state.text, training=False)
        fused = fusion_of(self)(text, cache=state.fusion, causal=True, training=False)
        hidden = None if state.hidden is None else head(fused.text)[:, 0]
        logits = head.logits(fused.text, self.text_encoder.logits)[:, 0]
        return logits, CaptionState(text_cache, fused.cache, hidden)  # type: ignore[arg-type]  # there is one where one was given

    def attend(
        self,
        images: KerasTensor,
        token_ids: KerasTensor,
        token_mask: KerasTensor | None = None,
        causal: bool | None = None,
        image_mask: KerasTensor | None = None,
    ) -> KerasTensor:
        """Where each word looks: ``float[B, layers, heads, T, rows, cols]``, each map summing to 1, leading tokens left out.

        Of clips and several images ``[B, layers, heads, T, frames, rows, cols]``: the map of a word is over all its pictures.

        Args:
            images: ``float[B, H, W, 3]``.
            token_ids: ``int[B, T]``.
            token_mask: ``bool[B, T]``, ``True`` = real token. Default: all real.
            causal: Whether the text is read left to right, as when it is written. Default: if no head but the captioning one
                reads fused text, since the weights then know no other reading.
            image_mask: Of clips, ``bool[B, F]``, ``True`` = real picture. Default: all real.

        Raises:
            ConfigError: If the image encoder gives more than patches, as one that reads a source sentence too does.
        """
        patches, patch_mask = self.encode_patches(images, image_mask, training=False)
        return attention_of_words(self, patches, token_ids, token_mask, patch_mask, causal)

    def call(self, inputs: dict[str, KerasTensor], training: bool | None = None) -> dict[str, KerasTensor]:
        """Runs every head; see the class."""
        token_ids, token_mask = inputs["token_ids"], inputs.get("token_mask")
        patches, patch_mask = self.encode_patches(inputs["image"], inputs.get("image_mask"), training=training)
        both: dict[str, Any] = {"training": training, "patch_mask": patch_mask}
        outputs: dict[str, KerasTensor] = {}
        text = None
        if self.matching_head is not None:
            text = self.text_encoder(token_ids, token_mask=token_mask, training=training)
        if self.contrastive_head is not None:
            outputs["image_embedding"] = self.embed_patches(patches, **both)
            outputs["text_embedding"] = self.encode_text(token_ids, token_mask, training=training, text=text)
        if self.matching_head is not None:
            outputs["match_logits"] = self.match_tokens(patches, text, token_mask, **both)
        if self.masked_language_head is not None:
            outputs["masked_language_logits"] = self.masked_language_logits(patches, token_ids, token_mask, **both)
        if self.captioning_head is not None:
            outputs["caption_logits"] = self.caption_logits(patches, token_ids, token_mask, **both)
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

    def head(self, name: str) -> Any:
        """The head of a name.

        Raises:
            ConfigError: If the model has none.
        """
        head = getattr(self, f"{name}_head")
        if head is None:
            raise ConfigError(
                f"this model has no {name.replace('_', ' ')} head",
                where=self.name,
                expected=f"a {name.replace('_', ' ')} head",
                found=", ".join(self.heads),
                fix=f"build it with {name}_head=... (in a recipe: model.heads)",
            )
        return head

    def quantize(self, *arguments: Any, **options: Any) -> None:
        """As Keras's own, in place; `mmfusion.models.in_number_format` quantises a copy.

        Args:
            *arguments: Those of `keras.Model.quantize`, such as ``"int8"``.
            **options: The same.
        """
        super().quantize(*arguments, **options)
        # Graphs of before read the weights of before.
        self._captioner = self._matcher = None

    def get_config(self) -> dict[str, Any]:
        """The parts, serialised, and the options.

        Raises:
            ConfigError: If the weights are quantised, which the parts' own configurations do not know.
        """
        if quantised_layers(self):
            raise already_quantised(self.name)
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            **{part: serialize(getattr(self, part)) for part in _PARTS},
            "causal_text": self.causal_text,
            "contrastive_tokens": self.contrastive_tokens,
            "contrastive_queries": self.contrastive_queries,
            "contrastive_text": self.contrastive_text,
            "matching_tokens": self.matching_tokens,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> ImageTextModel:
        """Rebuilds the model from `get_config`."""
        config = dict(config)
        for part in _PARTS:
            if part in config:
                config[part] = keras.saving.deserialize_keras_object(config[part], custom_objects=custom_objects)
        return cls(**config)
