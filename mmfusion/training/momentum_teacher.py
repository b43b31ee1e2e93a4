"""A slow copy of the model that says what else could be right, and remembers what it has seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from mmfusion.errors import ConfigError
from mmfusion.models import ImageTextModel


class QueuedFeatures(NamedTuple):
    """Features of earlier batches.

    Attributes:
        image: ``float32[Q, E]``.
        text: ``float32[Q, E]``.
        image_id: ``int64[Q]``.
        valid: ``bool[Q]``, the places that are filled.
    """

    image: tf.Tensor
    text: tf.Tensor
    image_id: tf.Tensor
    valid: tf.Tensor


class MomentumTeacher(keras.layers.Layer):
    """A momentum copy of a model (an average of its weights over time) and a queue of the copy's features.

    After each step of training, and never in evaluation, every weight follows the model's:
    ``copy += (1 - decay) · (weight - copy)``, and the global batch takes the place of the oldest in the queue. On several
    replicas all hold the same copy and the same queue. The copy reads without dropout. It is part of the `Trainer`'s variables,
    so that checkpoints hold it; what is saved and exported is the model alone.

    Args:
        model: The model to follow; the copy starts with its weights (`follow` takes them anew).
        decay: How much of the copy stays at a step, 0 to 1. Default 0.995.
        queue_size: Pairs that are remembered, Q; at least a global batch, or 0 for none. Default 4096.
        alpha: Share of the copy in the target, 0 to 1. Default 0.4.
        warmup_steps: Steps in which that share grows from 0: a copy that has learned nothing has nothing to say. Default 0.

    Raises:
        ConfigError: If an option is out of range.

    Example:
        >>> from mmfusion.encoders import TextTransformer, VisionTransformer
        >>> from mmfusion.models import ContrastiveHead, ImageTextModel
        >>> from mmfusion.training import MomentumTeacher
        >>> model = ImageTextModel(
        ...     image_encoder=VisionTransformer(image_size=8, patch_size=8, dim=8, depth=1, num_heads=1),
        ...     text_encoder=TextTransformer(vocabulary_size=9, max_length=4, dim=8, depth=1, num_heads=1),
        ...     contrastive_head=ContrastiveHead(embedding_dim=4),
        ... )
        >>> teacher = MomentumTeacher(model, decay=0.5, queue_size=8)
        >>> model.weights[0].assign(teacher.model.weights[0] + 1.0) is None
        False
        >>> teacher.update()
        >>> round(float((model.weights[0] - teacher.model.weights[0])[0, 0]), 4), int(teacher.queued().valid.numpy().sum())
        (0.5, 0)

    Source: Li et al., ALBEF, 2021 (arXiv:2107.07651), section 3.3; the queue: He et al., MoCo, 2019 (arXiv:1911.05722).
    """

    def __init__(
        self,
        model: ImageTextModel,
        *,
        decay: float = 0.995,
        queue_size: int = 4096,
        alpha: float = 0.4,
        warmup_steps: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"name": "momentum_teacher", **kwargs})
        for name, value in (("decay", decay), ("alpha", alpha)):
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"impossible {name}", where=self.name, expected="a number from 0 to 1", found=value)
        if queue_size < 0 or warmup_steps < 0:
            raise ConfigError(
                "impossible sizes", where=self.name, expected="none below 0", found=f"{queue_size} places, {warmup_steps} steps"
            )
        self.decay = decay
        self.queue_size = queue_size
        self.alpha = alpha
        self.warmup_steps = warmup_steps
        self.model = type(model).from_config({**model.get_config(), "name": f"{model.name}_momentum"})
        # Keras would track the model itself as a part of this layer, and count and freeze its weights with it.
        self._followed: Callable[[], ImageTextModel] = lambda: model
        width = 1 if model.contrastive_head is None else model.contrastive_head.embedding_dim
        places = queue_size if model.contrastive_head is not None else 0
        self.image_queue = self._state("image_queue", (places, width), "float32")
        self.text_queue = self._state("text_queue", (places, width), "float32")
        self.id_queue = self._state("id_queue", (places,), "int64")
        self.steps = self._state("steps", (), "int64")
        self.enqueued = self._state("enqueued", (), "int64")
        self.trainable = False
        self.built = True
        self.follow()

    def _state(self, name: str, shape: tuple[int, ...], dtype: str) -> keras.Variable:
        return self.add_weight(shape=shape, dtype=dtype, initializer="zeros", trainable=False, autocast=False, name=name)

    def follow(self) -> None:
        """Takes the model's weights as they are, as at the start of a training from pretrained ones."""
        for copy, weight in self._pairs():
            copy.assign(weight)

    def _pairs(self) -> list[tuple[keras.Variable, keras.Variable]]:
        return list(zip(self.model.weights, self._followed().weights, strict=True))

    def share(self) -> tf.Tensor:
        """``float32[]``, the teacher's share in the target at this step."""
        if not self.warmup_steps:
            return tf.constant(self.alpha, tf.float32)
        return self.alpha * tf.minimum(tf.cast(self.steps.value, tf.float32) / self.warmup_steps, 1.0)

    def queued(self) -> QueuedFeatures:
        """What the queue holds."""
        places = self.image_queue.shape[0]
        valid = tf.range(places, dtype=tf.int64) < self.enqueued.value
        image, text, image_id = (tf.convert_to_tensor(x.value) for x in (self.image_queue, self.text_queue, self.id_queue))
        return QueuedFeatures(image, text, image_id, valid)

    def update(self) -> None:
        """Lets the copy follow the model by one step; each replica updates its own, by the same numbers."""
        for copy, weight in self._pairs():
            if copy.dtype.startswith(("float", "bfloat")):
                copy.value.assign_add((1.0 - self.decay) * (weight.value - copy.value))
            else:
                copy.value.assign(weight.value)
        self.steps.value.assign_add(1)

    def enqueue(self, image: tf.Tensor, text: tf.Tensor, image_id: tf.Tensor) -> None:
        """Puts a global batch, the same on all replicas, into the places of the oldest.

        Args:
            image: ``float32[B, E]``, the copy's features.
            text: ``float32[B, E]``.
            image_id: ``int[B]``.

        Raises:
            ConfigError: If the batch is larger than the queue.
        """
        places = self.image_queue.shape[0]
        if not places:
            return
        if image.shape[0] is not None and image.shape[0] > places:
            raise ConfigError(
                "the batch does not fit the queue", where="queue_size", expected=f"at least {image.shape[0]}", found=places
            )
        index = (self.enqueued.value + tf.range(tf.shape(image, tf.int64)[0])) % places
        for queue, rows in ((self.image_queue, image), (self.text_queue, text), (self.id_queue, image_id)):
            queue.value.assign(tf.tensor_scatter_nd_update(queue.value, index[:, None], tf.cast(rows, queue.dtype)))
        self.enqueued.value.assign_add(tf.shape(image, tf.int64)[0])
