"""The figures that a validation can say, by name: what a model is chosen by."""

from __future__ import annotations

from collections.abc import Iterable

#: Of the dual encoder.
RETRIEVAL_FIGURES = tuple(
    f"val_{name}"
    for name in ("rsum", *(f"{way}_{what}" for way in ("i2t", "t2i") for what in ("r1", "r5", "r10", "median_rank")))
)
#: Of written captions. They take long, so a validation says them only where one of them is asked for.
CAPTION_FIGURES = ("val_cider_d", "val_rouge_l", "val_bleu_1", "val_bleu_2", "val_bleu_3", "val_bleu_4", "val_distinct")


def lower_is_better(figure: str) -> bool:
    """Whether less of a figure is better: losses and ranks.

    Args:
        figure: Its name.

    Example:
        >>> lower_is_better("val_loss"), lower_is_better("val_t2i_median_rank"), lower_is_better("val_rsum")
        (True, True, False)
    """
    return figure.endswith(("loss", "rank"))


def figures_of(heads: Iterable[str], terms: Iterable[str]) -> tuple[str, ...]:
    """The figures that a validation can say.

    Args:
        heads: The model's heads.
        terms: The terms of the loss.

    Returns:
        Their names.

    Example:
        >>> figures_of(["matching"], ["matching"])
        ('val_loss', 'val_matching_loss', 'val_matching_accuracy')
    """
    heads = set(heads)
    losses = [f"val_{term}_{what}" for term in terms for what in ("loss", "accuracy")]
    retrieval = RETRIEVAL_FIGURES if "contrastive" in heads else ()
    captions = CAPTION_FIGURES if "captioning" in heads else ()
    return ("val_loss", *losses, *retrieval, *captions)
