"""The contrastive loss of CLIP over a global batch that may hold several captions of an image."""

from __future__ import annotations

from typing import Any

from keras import KerasTensor, ops

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
) -> KerasTensor:
    """Each image is to choose its text among all texts, and each text its image among all images.

    ``loss[i] = ½ H(target[i], softmax(s · image[i] · all_textᵀ)) + ½ H(target[i], softmax(s · text[i] · all_imageᵀ))``

    with the cross-entropy ``H`` and the scale ``s``. ``target[i]`` is even over the pairs of image i, mixed with
    `label_smoothing` of an even spread over all pairs that count. Everything is computed in float32. A bias added to
    all similarities would change nothing, so there is none.

    On several replicas each passes its own rows and, in ``all_*``, the rows of all. The mean of the replicas' means is
    then the loss of the global batch, and so is its gradient if the gathering has one.

    Args:
        image: ``float[b, E]``, unit length, the local rows.
        text: ``float[b, E]``, unit length; row i is a caption of image i.
        scale: ``float[]``, the inverse temperature.
        image_id: ``int[b]``. Rows with the same id show the same image and are never negatives of each other. Default:
            all differ.
        all_image: ``float[B, E]``, images of the global batch. Default: `image`.
        all_text: ``float[B, E]``, texts of the global batch. Default: `text`.
        all_image_id: ``int[B]``, ids of the global batch; needed with `image_id` when ``all_*`` are given.
        offset: ``int[]``, the index among all rows of local row 0. Default 0.
        label_smoothing: Share of the target spread evenly over all pairs that count, in [0, 1). Default 0.
        duplicates: What other captions of the same image are: ``"positive"`` (targets too) or ``"ignore"`` (left out of
            the choice). Default ``"positive"``.

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
    et al., UniCL, 2022 (arXiv:2204.03610), section 3.
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
    scale = ops.convert_to_tensor(scale, "float32")
    # Scaling the b rows is cheaper than scaling the b x B products.
    image_to_text = ops.matmul(scale * image, ops.transpose(all_text))
    text_to_image = ops.matmul(scale * text, ops.transpose(all_image))
    return 0.5 * (_cross_entropy(image_to_text, masks, label_smoothing) + _cross_entropy(text_to_image, masks, label_smoothing))


def _cross_entropy(logits: KerasTensor, masks: PairMasks, label_smoothing: float) -> KerasTensor:
    kept = ops.where(masks.kept, logits, float("-inf"))
    loss = ops.logsumexp(kept, axis=-1) - (1.0 - label_smoothing) * _mean(logits, masks.positive)
    return loss - label_smoothing * _mean(logits, masks.kept) if label_smoothing else loss


def _mean(values: KerasTensor, mask: Any) -> KerasTensor:
    total = ops.sum(ops.where(mask, values, 0.0), axis=-1)
    return total / ops.sum(ops.cast(mask, "float32"), axis=-1)
