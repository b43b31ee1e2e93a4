"""The contrastive loss of CLIP over a global batch that may hold several captions of an image."""

from __future__ import annotations

from typing import Any

from keras import KerasTensor, ops

from mmfusion.errors import ConfigError
from mmfusion.losses._pairs import PairMasks, check_arguments, pair_masks


def softmax_contrastive(
    image: KerasTensor,
    text: KerasTensor,
    scale: KerasTensor | float,
    *,
    image_id: KerasTensor | None = None,
    all_image: KerasTensor | None = None,
    all_text: KerasTensor | None = None,
    all_image_id: KerasTensor | None = None,
    offset: KerasTensor | int = 0,
    label_smoothing: float = 0.0,
    duplicates: str = "positive",
    valid: KerasTensor | None = None,
    teacher_image: KerasTensor | None = None,
    teacher_text: KerasTensor | None = None,
    alpha: KerasTensor | float = 0.0,
    z_loss: float = 0.0,
) -> KerasTensor:
    """Each image is to choose its text among all texts, and each text its image among all images.

    ``loss[i] = ½ H(target[i], softmax(s · image[i] · all_textᵀ)) + ½ H(target[i], softmax(s · text[i] · all_imageᵀ))``

    with the cross-entropy ``H`` and the scale ``s``. ``target[i]`` is even over the pairs of image i, mixed with
    `label_smoothing` of an even spread over all pairs that count. Everything is computed in float32. A bias added to
    all similarities would change nothing, so there is none.

    On several replicas each passes its own rows and, in ``all_*``, the rows of all. The mean of the replicas' means is
    then the loss of the global batch, and so is its gradient if the gathering has one.

    With a momentum copy of the model (ALBEF), the ``all_*`` are *its* features of the global batch, followed by its features of
    earlier batches; the local features compare with all of them. The target of image i is then mixed with what the copy finds:
    ``(1 - α) · target[i] + α · softmax(s · teacher_image[i] · all_textᵀ)``, and likewise that of text i.

    Args:
        image: ``float[b, E]``, unit length, the local rows.
        text: ``float[b, E]``, unit length; row i is a caption of image i.
        scale: ``float[]``, the inverse temperature.
        image_id: ``int[b]``. Rows with the same id show the same image and are never negatives of each other. Default:
            all differ.
        all_image: ``float[B, E]``, images of the global batch. Default: `image`.
        all_text: ``float[B, E]``, texts of the global batch. Default: `text`.
        all_image_id: ``int[B]``, ids of the global batch; needed with `image_id` when ``all_*`` are given.
        offset: ``int[]``, the index among all rows of local row 0. Default 0. All rows may be more than the batch.
        label_smoothing: Share of the target spread evenly over all pairs that count, in [0, 1). Default 0.
        duplicates: What other captions of the same image are: ``"positive"`` (targets too) or ``"ignore"`` (left out of
            the choice). Default ``"positive"``.
        valid: ``bool[B]``, which of all rows take part at all (places of a queue that are not filled yet do not). Default: all.
        teacher_image: ``float[b, E]``, unit length, the momentum copy's features of the local images. Default: no teacher.
        teacher_text: ``float[b, E]``, of the local texts; needed with `teacher_image`.
        alpha: α, share of the teacher in the target, 0 to 1. Default 0.
        z_loss: Weight of ``½ · log²(Σ exp)`` over the choice of each of the two, which keeps logits from drifting. Default 0.

    Returns:
        ``float32[b]``, one loss for each local row; its mean over the global batch is the loss.

    Raises:
        ConfigError: If arguments do not go together.

    Example:
        With all features equal nothing can be told apart, and the loss is ln B:

        >>> import numpy as np
        >>> from mmfusion.losses import softmax_contrastive
        >>> features = np.tile([[0.6, 0.8]], (4, 1))
        >>> [round(float(x), 4) for x in softmax_contrastive(features, features, scale=10.0)]
        [1.3863, 1.3863, 1.3863, 1.3863]

    Source: Radford et al., CLIP, 2021 (arXiv:2103.00020), figure 3. Even targets over the captions of an image: Yang
    et al., UniCL, 2022 (arXiv:2204.03610), section 3. Teacher and queue: Li et al., ALBEF, 2021 (arXiv:2107.07651), equation 6.
    The squared log-partition: Chowdhery et al., PaLM, 2022 (arXiv:2204.02311), section 5.
    """
    image, text = ops.convert_to_tensor(image), ops.convert_to_tensor(text)
    check_arguments(
        image=image,
        text=text,
        image_id=image_id,
        all_image_id=all_image_id,
        gathered={"all_image": all_image, "all_text": all_text},
        duplicates=duplicates,
    )
    if (teacher_image is None) != (teacher_text is None):
        raise ConfigError("a teacher knows both streams", where="contrastive loss", expected="teacher_image and teacher_text")
    image, text = ops.cast(image, "float32"), ops.cast(text, "float32")
    all_image = image if all_image is None else ops.cast(all_image, "float32")
    all_text = text if all_text is None else ops.cast(all_text, "float32")
    masks = pair_masks(
        rows=ops.shape(image)[0],
        columns=ops.shape(all_text)[0],
        offset=offset,
        image_id=image_id,
        all_image_id=image_id if all_image_id is None else all_image_id,
        duplicates=duplicates,
    )
    if valid is not None:
        valid = ops.cast(valid, "bool")[None, :]
        masks = PairMasks(*(ops.logical_and(mask, valid) for mask in masks))
    scale = ops.convert_to_tensor(scale, "float32")
    losses = []
    for rows, everyone, teacher in ((image, all_text, teacher_image), (text, all_image, teacher_text)):
        # Scaling the b rows is cheaper than scaling the b x B products.
        logits = ops.matmul(scale * rows, ops.transpose(everyone))
        if teacher is None:
            target = None
        else:
            target = ops.stop_gradient(ops.matmul(scale * ops.cast(teacher, "float32"), ops.transpose(everyone)))
        losses.append(_cross_entropy(logits, masks, label_smoothing, target, alpha, z_loss))
    return 0.5 * (losses[0] + losses[1])


def _cross_entropy(
    logits: KerasTensor,
    masks: PairMasks,
    label_smoothing: float,
    teacher_logits: KerasTensor | None,
    alpha: KerasTensor | float,
    z_loss: float,
) -> KerasTensor:
    log_partition = ops.logsumexp(ops.where(masks.kept, logits, float("-inf")), axis=-1)
    target = (1.0 - label_smoothing) * _mean(logits, masks.positive)
    if label_smoothing:
        target = target + label_smoothing * _mean(logits, masks.kept)
    if teacher_logits is not None:
        teacher = ops.softmax(ops.where(masks.kept, teacher_logits, float("-inf")), axis=-1)
        target = (1.0 - alpha) * target + alpha * ops.sum(teacher * ops.where(masks.kept, logits, 0.0), axis=-1)
    loss = log_partition - target
    return loss + z_loss * ops.square(log_partition) if z_loss else loss


def _mean(values: KerasTensor, mask: Any) -> KerasTensor:
    total = ops.sum(ops.where(mask, values, 0.0), axis=-1)
    return total / ops.sum(ops.cast(mask, "float32"), axis=-1)
