"""The contrastive loss of SigLIP: every pair a yes-or-no question of its own."""

from __future__ import annotations

from keras import KerasTensor, ops

from mmfusion.losses._pairs import check_arguments, pair_masks


def sigmoid_contrastive(
    image: KerasTensor,
    text: KerasTensor,
    scale: KerasTensor | float,
    bias: KerasTensor | float,
    *,
    image_id: KerasTensor | None = None,
    all_text: KerasTensor | None = None,
    all_image_id: KerasTensor | None = None,
    offset: KerasTensor | int = 0,
    duplicates: str = "positive",
) -> KerasTensor:
    """Each local image is asked of every text whether it is its own.

    ``loss[i] = Σ_j -log sigmoid(z[i, j] · (scale · image[i] · all_text[j] + bias))``

    where ``z`` is 1 for a positive, else -1. Everything is computed in float32. On several replicas each passes its own
    images and, in `all_text`, the texts of all: every pair of the global batch is then counted once, and the mean of
    the replicas' means is the loss of the global batch.

    Args:
        image: ``float[b, E]``, unit length, the local rows.
        text: ``float[b, E]``, unit length; row i is a caption of image i.
        scale: ``float[]``, the inverse temperature (starts at 10 in the paper).
        bias: ``float[]`` (starts at -10 in the paper, since nearly all pairs are negatives).
        image_id: ``int[b]``. Rows with the same id show the same image and are never negatives of each other. Default:
            all differ.
        all_text: ``float[B, E]``, texts of the global batch. Default: `text`.
        all_image_id: ``int[B]``, ids of the global batch; needed with `image_id` when `all_text` is given.
        offset: ``int[]``, the index among all rows of local row 0. Default 0.
        duplicates: What other captions of the same image are: ``"positive"``, or ``"ignore"`` (not asked). Default
            ``"positive"``.

    Returns:
        ``float32[b]``, one loss for each local row; its mean over the global batch is the loss.

    Raises:
        ConfigError: If arguments do not go together.

    Example:
        With scale and bias 0 every one of B questions costs ln 2:

        >>> import numpy as np
        >>> from mmfusion.losses import sigmoid_contrastive
        >>> features = np.tile([[0.6, 0.8]], (4, 1))
        >>> [round(float(x), 4) for x in sigmoid_contrastive(features, features, scale=0.0, bias=0.0)]
        [2.7726, 2.7726, 2.7726, 2.7726]

    Source: Zhai et al., SigLIP, 2023 (arXiv:2303.15343), section 3.2 and algorithm 1.
    """
    image, text = ops.convert_to_tensor(image), ops.convert_to_tensor(text)
    check_arguments(
        image=image,
        text=text,
        image_id=image_id,
        all_image_id=all_image_id,
        gathered={"all_text": all_text},
        duplicates=duplicates,
    )
    image = ops.cast(image, "float32")
    all_text = ops.cast(text if all_text is None else all_text, "float32")
    masks = pair_masks(
        rows=ops.shape(image)[0],
        columns=ops.shape(all_text)[0],
        offset=offset,
        image_id=image_id,
        all_image_id=image_id if all_image_id is None else all_image_id,
        duplicates=duplicates,
    )
    logits = ops.matmul(ops.convert_to_tensor(scale, "float32") * image, ops.transpose(all_text))
    logits = logits + ops.convert_to_tensor(bias, "float32")
    # -log sigmoid(x) = softplus(-x), which neither overflows nor rounds to zero where it should not.
    loss = ops.softplus(ops.where(masks.positive, -logits, logits))
    return ops.sum(ops.where(masks.kept, loss, 0.0), axis=-1)
