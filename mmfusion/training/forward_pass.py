"""One batch through the encoders, each stream computed once however many objectives read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from mmfusion.errors import ConfigError
from mmfusion.models import ContrastiveHead, ImageTextModel
from mmfusion.training.momentum_teacher import MomentumTeacher, QueuedFeatures
from mmfusion.training.replicas import gather, row_offset


def _computed_once(compute: Callable[[ForwardPass], Any]) -> property:
    # Not functools.cached_property: until Python 3.11 it holds a lock, and replicas (threads) wait for each other inside.
    def read(self: ForwardPass) -> Any:
        if compute.__name__ not in self._parts:
            self._parts[compute.__name__] = compute(self)
        return self._parts[compute.__name__]

    return property(read, doc=compute.__doc__)


class ForwardPass:
    """What the objectives share of one batch; every part is computed when it is first asked for.

    Args:
        model: The model.
        batch: ``image`` (``float[b, H, W, 3]``), ``token_ids`` (``int[b, T]``), ``token_mask`` (``bool[b, T]``) and
            ``image_id`` (``int[b]``), of clips ``image_mask`` (``bool[b, F]``): this replica's rows.
        training: Whether dropout is active.
        teacher: The model's momentum copy, where the training distils one. Default: none.

    Example:
        >>> import numpy as np
        >>> from mmfusion.encoders import TextTransformer, VisionTransformer
        >>> from mmfusion.models import ContrastiveHead, ImageTextModel
        >>> from mmfusion.training.forward_pass import ForwardPass
        >>> model = ImageTextModel(
        ...     image_encoder=VisionTransformer(image_size=8, patch_size=8, dim=8, depth=1, num_heads=1),
        ...     text_encoder=TextTransformer(vocabulary_size=9, max_length=4, dim=8, depth=1, num_heads=1),
        ...     contrastive_head=ContrastiveHead(embedding_dim=4),
        ... )
        >>> batch = {"image": np.zeros((2, 8, 8, 3), "float32"), "token_ids": np.ones((2, 4), "int32"),
        ...          "token_mask": np.ones((2, 4), bool), "image_id": np.arange(2)}
        >>> tuple(ForwardPass(model, batch, training=False).similarity.shape)
        (2, 2)
    """

    def __init__(
        self,
        model: ImageTextModel,
        batch: dict[str, tf.Tensor],
        *,
        training: bool,
        teacher: MomentumTeacher | None = None,
    ) -> None:
        self.model = model
        self.teacher = teacher
        self.batch = batch
        self.training = training
        self._parts: dict[str, Any] = {}

    @property
    def contrastive_head(self) -> ContrastiveHead:
        """The model's contrastive head.

        Raises:
            ConfigError: If it has none.
        """
        if self.model.contrastive_head is None:
            raise ConfigError("the contrastive objective needs a contrastive head", where=self.model.name, found=self.model.heads)
        return self.model.contrastive_head

    @_computed_once
    def _image(self) -> tuple[tf.Tensor, tf.Tensor | None]:
        return self.model.encode_patches(self.batch["image"], self.batch.get("image_mask"), training=self.training)

    @property
    def patches(self) -> tf.Tensor:
        """``float[b, P, Di]``."""
        return self._image[0]

    @property
    def patch_mask(self) -> tf.Tensor | None:
        """``bool[b, P]``, ``True`` = real patch; None where all are, as those of single pictures."""
        return self._image[1]

    @_computed_once
    def text(self) -> tf.Tensor:
        """``float[b, T, D]``, read both ways."""
        return self.model.text_encoder(self.batch["token_ids"], token_mask=self.batch["token_mask"], training=self.training)

    @_computed_once
    def image_embedding(self) -> tf.Tensor:
        """``float32[b, E]``, unit length."""
        return self.model.embed_patches(self.patches, training=self.training, patch_mask=self.patch_mask)

    @_computed_once
    def text_embedding(self) -> tf.Tensor:
        """``float32[b, E]``, unit length."""
        # What is read left to right for the contrastive head alone is no text that another objective reads.
        alone = self.model.causal_text or self.model.contrastive_text == "class_token"
        text = None if alone else self.text
        return self.model.encode_text(self.batch["token_ids"], self.batch["token_mask"], training=self.training, text=text)

    @_computed_once
    def all_image_embedding(self) -> tf.Tensor:
        """``float32[B, E]``, of all replicas."""
        return gather(self.image_embedding)

    @_computed_once
    def all_text_embedding(self) -> tf.Tensor:
        """``float32[B, E]``, of all replicas."""
        return gather(self.text_embedding)

    @_computed_once
    def similarity(self) -> tf.Tensor:
        """``float32[B, B]``, scaled similarity of all images (rows) and texts (columns), without gradient."""
        product = tf.matmul(self.all_image_embedding, self.all_text_embedding, transpose_b=True)
        return tf.stop_gradient(self.contrastive_head.scale * product)

    @_computed_once
    def all_image_id(self) -> tf.Tensor:
        """``int[B]``, of all replicas."""
        return gather(self.batch["image_id"])

    @_computed_once
    def offset(self) -> tf.Tensor:
        """``int32[]``, where this replica's rows stand among all."""
        return row_offset(self.batch["image_id"])

    @_computed_once
    def momentum(self) -> ForwardPass:
        """The same batch through the momentum copy, without dropout. Nothing of it is to be given a gradient."""
        if self.teacher is None:
            raise ConfigError("this training has no momentum copy", where=self.model.name, fix="pass Trainer a momentum teacher")
        return ForwardPass(self.teacher.model, self.batch, training=False)

    @_computed_once
    def momentum_features(self) -> QueuedFeatures:
        """The copy's features of the global batch, without gradient; all of them valid."""
        image, text = self.momentum.all_image_embedding, self.momentum.all_text_embedding
        everyone = self.all_image_id
        return QueuedFeatures(tf.stop_gradient(image), tf.stop_gradient(text), everyone, tf.ones_like(everyone, tf.bool))
