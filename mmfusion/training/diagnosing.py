"""A recipe's words into a `Diagnostics` callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from mmfusion.data import Quarantine, Source, Transform, build_eval_images
from mmfusion.evaluation.diagnostic_figures import draw_diagnostics
from mmfusion.text import WordPieceTokenizer
from mmfusion.training.callbacks.diagnostics import Diagnostics, Probe
from mmfusion.training.diagnostics import AttentionProbe, GradientProbe, ImageTextModalityProbe
from mmfusion.training.run_folder import RunFolder
from mmfusion.training.trainer import Trainer

if TYPE_CHECKING:
    from mmfusion.config import Recipe


def build_diagnostics(
    recipe: Recipe,
    trainer: Trainer,
    source: Source,
    tokenizer: WordPieceTokenizer,
    transform: Transform,
    run: RunFolder,
    log: Callable[[str, dict[str, Any]], None],
) -> Diagnostics | None:
    """The callback that a recipe asks for, or None where it asks for none.

    Args:
        recipe: The recipe; ``train.diagnostics`` says what is looked at.
        trainer: What trains.
        source: The data; the first images of its validation split are looked at.
        tokenizer: The tokenizer.
        transform: From image files to the model's pixels.
        run: Where the pictures go.
        log: Where the reports go.
    """
    options = recipe.train.diagnostics
    if options is None:
        return None
    batch = fixed_batch(source, recipe.data.validation_split, tokenizer, transform, options.examples)
    probes: list[Probe] = []
    if options.attention:
        probes.append(AttentionProbe(trainer.model, batch))
    if options.gradients:
        probes.append(GradientProbe(trainer.model, lambda: trainer.compute_losses(batch, training=False)[0]))
    if options.modality:
        probes.append(ImageTextModalityProbe(trainer.model, batch))
    return Diagnostics(probes, every=options.every, log=log, draw=lambda: draw_diagnostics(run.train_log, run.figures))


def fixed_batch(
    source: Source, split: str, tokenizer: WordPieceTokenizer, transform: Transform, size: int
) -> dict[str, tf.Tensor]:
    """The first images of a split that can be read, each with its first caption.

    Args:
        source: The data.
        split: The split.
        tokenizer: The tokenizer.
        transform: From image files to the model's pixels.
        size: Images.

    Returns:
        A batch as `Trainer.compute_losses` takes it.
    """
    captions = {example.image_id: example.captions[0] for example in source.splits[split]}
    images = build_eval_images(
        source,
        split,
        transform=transform,
        batch_size=size,
        quarantine=Quarantine(None, total=len(captions), max_share=1.0),
    )
    batch = next(iter(images))
    tokens = tokenizer(tf.constant([captions[int(image_id)] for image_id in batch["image_id"]]))
    return {**batch, "token_ids": tokens.token_ids, "token_mask": tokens.token_mask}
