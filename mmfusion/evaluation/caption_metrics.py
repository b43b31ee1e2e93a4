"""The scores of a model's captions against people's."""

from __future__ import annotations

from collections.abc import Sequence

from mmfusion.evaluation.bleu import bleu
from mmfusion.evaluation.caption_inputs import check_caption_lists
from mmfusion.evaluation.caption_tokenizer import tokenize_captions
from mmfusion.evaluation.cider_d import cider_d
from mmfusion.evaluation.rouge_l import rouge_l


def caption_metrics(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores captions with BLEU-1 to 4, ROUGE-L and CIDEr-D, after `tokenize_captions`.

    Args:
        candidates: One caption an image.
        references: What people wrote of each image, any number of captions.

    Returns:
        ``bleu_1`` … ``bleu_4`` and ``rouge_l`` in 0..1, ``cider_d`` in 0..10: the scale of pycocoevalcap; papers print
        them times 100.

    Raises:
        DataError: If there are no captions, the lists are unequal, or an image has no reference.

    Example:
        >>> references = [["A dog runs.", "The dog is running."], ["Two cats sleep on a bed."]]
        >>> metrics = caption_metrics(["A dog runs", "two cats on a bed"], references)
        >>> {name: round(value, 3) for name, value in metrics.items()}
        {'bleu_1': 0.882, 'bleu_2': 0.806, 'bleu_3': 0.659, 'bleu_4': 0.0, 'rouge_l': 0.947, 'cider_d': 4.378}
    """
    check_caption_lists(candidates, references)
    words = tokenize_captions(candidates)
    reference_words = [tokenize_captions(captions) for captions in references]
    metrics = {f"bleu_{order}": figure for order, figure in enumerate(bleu(words, reference_words).corpus, start=1)}
    metrics["rouge_l"] = float(rouge_l(words, reference_words).mean())
    metrics["cider_d"] = float(cider_d(words, reference_words).mean())
    return metrics
