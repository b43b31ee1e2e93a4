"""Retrieval protocols, caption scores, reports and figures.

Everything here but the `Evaluator`, which runs models, is NumPy and needs neither Keras nor TensorFlow; the `Evaluator`
loads when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmfusion.evaluation.bleu import BleuScore, bleu
from mmfusion.evaluation.candidates import first_candidates
from mmfusion.evaluation.caption_metrics import caption_metrics
from mmfusion.evaluation.caption_tokenizer import tokenize_caption, tokenize_captions
from mmfusion.evaluation.cider_d import cider_d
from mmfusion.evaluation.figures import draw_captions, draw_learning_curves, draw_retrieval
from mmfusion.evaluation.report import print_report, write_report
from mmfusion.evaluation.reranking import rerank
from mmfusion.evaluation.retrieval_metrics import RetrievalRanks, retrieval_metrics, retrieval_ranks
from mmfusion.evaluation.rouge_l import rouge_l

if TYPE_CHECKING:
    from mmfusion.evaluation.evaluator import CaptionsResult, EncodedGallery, Evaluator

__all__ = [
    "BleuScore",
    "CaptionsResult",
    "EncodedGallery",
    "Evaluator",
    "RetrievalRanks",
    "bleu",
    "caption_metrics",
    "cider_d",
    "draw_captions",
    "draw_learning_curves",
    "draw_retrieval",
    "first_candidates",
    "print_report",
    "rerank",
    "retrieval_metrics",
    "retrieval_ranks",
    "rouge_l",
    "tokenize_caption",
    "tokenize_captions",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in {"CaptionsResult", "EncodedGallery", "Evaluator"}:
        return getattr(importlib.import_module("mmfusion.evaluation.evaluator"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
