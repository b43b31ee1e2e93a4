"""The contrastive objective over the global batch."""

from __future__ import annotations

import tensorflow as tf

from mmfusion.errors import ConfigError
from mmfusion.losses import sigmoid_contrastive, softmax_contrastive
from mmfusion.training.forward_pass import ForwardPass
from mmfusion.training.momentum_teacher import MomentumTeacher
from mmfusion.training.objectives.objective import ObjectiveOutput, mean_share


class ContrastiveObjective:
    """Image and text of a pair are to be nearest to each other among all pairs of all replicas.

    See `mmfusion.losses.softmax_contrastive` and `sigmoid_contrastive` for the formulas. Other captions of the same image are
    positives.

    Args:
        weight: Factor in the total loss. Default 1.
        loss: ``"softmax"`` (CLIP) or ``"sigmoid"`` (SigLIP). Default ``"softmax"``.
        label_smoothing: Share of the target spread over all, of ``"softmax"``, in training alone. Default 0.
        z_loss: Weight of the squared log-partition of ``"softmax"``, in training alone. Default 0.

    A training with a `MomentumTeacher` compares with the copy's features of this batch and of its queue, and learns from the
    copy's own choice too (``"softmax"`` alone). A validation says the plain loss over its batches.

    Raises:
        ConfigError: If the loss is unknown, or ``"sigmoid"`` is to smooth, to have a log-partition or to be taught.

    Example:
        >>> from mmfusion.training.objectives import ContrastiveObjective
        >>> ContrastiveObjective(weight=0.5).name
        'contrastive'
    """

    name = "contrastive"
    figures: tuple[str, ...] = ("contrastive_loss", "contrastive_accuracy")

    def __init__(self, *, weight: float = 1.0, loss: str = "softmax", label_smoothing: float = 0.0, z_loss: float = 0.0) -> None:
        if loss not in ("softmax", "sigmoid") or (loss == "sigmoid" and (label_smoothing or z_loss)):
            found = f"loss={loss!r}, label_smoothing={label_smoothing}, z_loss={z_loss}"
            expected = "softmax, or sigmoid without label smoothing and z-loss"
            raise ConfigError("impossible contrastive loss", expected=expected, found=found)
        self.weight = weight
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss

    def __call__(self, forward: ForwardPass) -> ObjectiveOutput:
        """Computes the term for one batch."""
        loss = self._loss(forward)
        nearest = tf.argmax(tf.matmul(forward.image_embedding, forward.all_text_embedding, transpose_b=True), axis=-1)
        right = tf.gather(forward.all_image_id, nearest) == forward.batch["image_id"]
        return ObjectiveOutput(mean_share(loss), {"contrastive_accuracy": mean_share(right)})

    def _loss(self, forward: ForwardPass) -> tf.Tensor:
        """``float32[b]``."""
        head, image_id = forward.contrastive_head, forward.batch["image_id"]
        if self.loss == "sigmoid":
            if forward.teacher is not None:
                raise ConfigError("a momentum teacher needs the softmax loss", where="contrastive loss", found="sigmoid")
            return sigmoid_contrastive(
                forward.image_embedding,
                forward.text_embedding,
                head.scale,
                head.bias,
                image_id=image_id,
                all_text=forward.all_text_embedding,
                all_image_id=forward.all_image_id,
                offset=forward.offset,
            )
        # Regularisers and the teacher have no place in the figure by which models are compared.
        if forward.training and forward.teacher is not None:
            return self._distilled(forward, forward.teacher)
        return softmax_contrastive(
            forward.image_embedding,
            forward.text_embedding,
            head.scale,
            image_id=image_id,
            all_image=forward.all_image_embedding,
            all_text=forward.all_text_embedding,
            all_image_id=forward.all_image_id,
            offset=forward.offset,
            label_smoothing=self.label_smoothing if forward.training else 0.0,
            z_loss=self.z_loss if forward.training else 0.0,
        )

    def _distilled(self, forward: ForwardPass, teacher: MomentumTeacher) -> tf.Tensor:
        now, earlier = forward.momentum_features, teacher.queued()
        return softmax_contrastive(
            forward.image_embedding,
            forward.text_embedding,
            forward.contrastive_head.scale,
            image_id=tf.cast(forward.batch["image_id"], tf.int64),
            all_image=tf.concat([now.image, earlier.image], axis=0),
            all_text=tf.concat([now.text, earlier.text], axis=0),
            all_image_id=tf.concat([tf.cast(now.image_id, tf.int64), earlier.image_id], axis=0),
            offset=forward.offset,
            label_smoothing=self.label_smoothing,
            valid=tf.concat([now.valid, earlier.valid], axis=0),
            teacher_image=forward.momentum.image_embedding,
            teacher_text=forward.momentum.text_embedding,
            alpha=teacher.share(),
            z_loss=self.z_loss,
        )
