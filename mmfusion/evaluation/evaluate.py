"""The whole evaluation of a model by its recipe: figures, a table and pictures in one folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmfusion.data import Example, Quarantine, Source, Transform
from mmfusion.errors import DataError
from mmfusion.evaluation.caption_likelihood import unigram_loss
from mmfusion.evaluation.drawing import contact_sheet
from mmfusion.evaluation.evaluator import CaptionsResult, EncodedGallery, Evaluator
from mmfusion.evaluation.matching_retrieval import retrieval_by_matching
from mmfusion.evaluation.report import write_report
from mmfusion.models import ImageTextModel
from mmfusion.text import WordPieceTokenizer

if TYPE_CHECKING:
    from mmfusion.config import Recipe

Progress = Callable[[str, int, int], None]


def evaluate_model(
    recipe: Recipe,
    model: ImageTextModel,
    tokenizer: WordPieceTokenizer,
    transform: Transform,
    source: Source,
    output: str | Path,
    *,
    precision: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures a model as its recipe's ``evaluation`` section says.

    Args:
        recipe: The recipe.
        model: The model.
        tokenizer: Its tokenizer.
        transform: From image files to its pixels.
        source: The data.
        output: The folder for ``metrics.json``, ``metrics.md``, ``captions.jsonl``, pictures and ``quarantine.jsonl``.
        precision: The number format that the model was brought to after its training, for the report. Default: none.
        progress: Called with (what, done, total).

    Returns:
        All figures by name; those after reranking are named ``reranked_…``.

    Raises:
        DataError: If there is no such split, or nothing in it can be read.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    options = recipe.evaluation
    split = options.split or recipe.data.validation_split
    (output / "quarantine.jsonl").unlink(missing_ok=True)

    def tell(what: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(what, done, total)

    evaluator_of = partial(
        Evaluator,
        model,
        source=source,
        split=split,
        tokenizer=tokenizer,
        transform=transform,
        quarantine=Quarantine(output / "quarantine.jsonl", total=sum(map(len, source.splits.values())), max_share=1.0),
        progress=tell("reading pictures"),
    )
    evaluator = evaluator_of(gallery=options.gallery)
    metrics: dict[str, Any] = {}
    notes = ["icons (Twemoji) with short names, not photographs"] if recipe.data.source == "builtin" else []
    gallery = f"{options.gallery}: {len(evaluator.gallery.splits['gallery'])} images"
    found = None
    rerank = options.rerank_top_k if "matching" in model.heads else 0
    if "contrastive" in model.heads:
        encoded = evaluator.encode(tokens=rerank > 0)
        metrics.update(evaluator.retrieval(encoded))
        found = _Found(evaluator, encoded, lambda texts: encoded.text_embedding[texts] @ encoded.image_embedding.T)
        if rerank:
            reranked = evaluator.reranked(encoded, top_k=rerank, fuse=options.fuse, progress=tell("reranking"))
            metrics.update({f"reranked_{name}": value for name, value in reranked.items()})
    elif "matching" in model.heads and options.retrieval_images:
        small = evaluator_of(gallery="split", limit=options.retrieval_images)
        matched = retrieval_by_matching(small, progress=tell("matching"))
        metrics.update(matched.metrics)
        found = _Found(small, matched.encoded, lambda texts: matched.scores[:, texts].T)
        images, texts = matched.scores.shape
        gallery = f"the first {images} images and their {texts} texts, every pair by the matching head"
        notes.append(f"ranks among {images} images are no ranks in the whole split: this model has no embeddings to search with")
    if "masked_language" in model.heads:
        metrics.update(evaluator.masked_language())
    captions = None
    if "captioning" in model.heads and options.captions:
        captions = evaluator.captions(
            limit=options.caption_images,
            **recipe.decoding.options(),
        )
        metrics.update(captions.metrics)
        metrics["token_loss"] = evaluator.caption_loss()
        metrics["unigram_loss"] = unigram_loss(
            tokenizer,
            [caption for example in source.splits[recipe.data.train_split] for caption in example.captions],
            [caption for example in evaluator.examples for caption in example.captions],
        )
        write_captions(captions, source, split, output / "captions.jsonl")
    meta = {
        "recipe": recipe.name,
        "data": source.name,
        "split": split,
        "images": len(evaluator.examples),
        "captions": sum(len(example.captions) for example in evaluator.examples),
        "captioned_images": 0 if captions is None else len(captions.captions),
        "gallery": gallery,
        "resolution": f"{transform.size[0]} x {transform.size[1]} ({transform.resize_mode})"
        + (f", up to {transform.frames} pictures" if transform.frames > 1 else ""),
        "parameters": model.count_params(),
        "rerank_top_k": rerank,
        "fuse": options.fuse,
        "skipped": evaluator.quarantine.count,
    }
    if precision is not None:
        notes.append(f"computed in {precision}, to which the model was brought after its training")
    if recipe.data.train_split == split:
        notes.append("measured on the pictures that it was trained on: says that the machinery works, nothing else")
    meta["notes"] = notes
    write_report(output, metrics, meta)
    _draw(output, evaluator, found, captions, transform)
    return metrics


class _Found(NamedTuple):
    """A gallery, and from texts (their rows) to the scores of its images, ``float[q, I]``."""

    evaluator: Evaluator
    encoded: EncodedGallery
    scores: Callable[[np.ndarray], np.ndarray]


def write_captions(captions: CaptionsResult, source: Source, split: str, path: Path) -> None:
    """Writes one JSON object a picture: its name, what the model wrote, what people wrote.

    Args:
        captions: What the model wrote.
        source: The data.
        split: The split.
        path: The file.
    """
    import json

    names = {example.image_id: example.name for example in source.splits[split]}
    with path.open("w", encoding="utf-8") as file:
        for image_id, text, references in zip(captions.image_id, captions.captions, captions.references, strict=True):
            row = {"image": names[image_id], "caption": text, "references": references}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _draw(
    output: Path,
    evaluator: Evaluator,
    found: _Found | None,
    captions: CaptionsResult | None,
    transform: Transform,
    *,
    rows: int = 6,
    top_k: int = 5,
) -> None:
    from mmfusion.evaluation.figures import draw_captions, draw_retrieval

    examples = {example.image_id: example for examples in evaluator.gallery.splits.values() for example in examples}
    if found is not None:
        encoded = found.encoded
        queries = np.flatnonzero(encoded.text_query)
        queries = queries[np.linspace(0, len(queries) - 1, min(rows, len(queries))).astype(int)]
        order = np.argsort(-found.scores(queries), axis=1)[:, :top_k]
        draw_retrieval(
            [_text_of(found.evaluator, encoded, int(query)) for query in queries],
            [[_picture(examples[int(encoded.image_id[row])], transform) for row in ranked] for ranked in order],
            [
                [bool(encoded.image_id[row] == encoded.text_image_id[query]) for row in ranked]
                for query, ranked in zip(queries, order, strict=True)
            ],
            output / "retrieval.png",
        )
    if captions is not None and captions.captions:
        chosen = np.linspace(0, len(captions.captions) - 1, min(12, len(captions.captions))).astype(int)
        draw_captions(
            [_picture(examples[captions.image_id[row]], transform) for row in chosen],
            [captions.captions[row] for row in chosen],
            [captions.references[row] for row in chosen],
            output / "captions.png",
        )


def _text_of(evaluator: Evaluator, encoded: EncodedGallery, row: int) -> str:
    image_id = int(encoded.text_image_id[row])
    first = int(np.flatnonzero(encoded.text_image_id == image_id)[0])
    for example in evaluator.examples:
        if example.image_id == image_id:
            return example.captions[min(row - first, len(example.captions) - 1)]
    raise DataError("a text without its image", where=evaluator.gallery.name, found=image_id)


def _picture(example: Example, transform: Transform) -> np.ndarray:
    pixels, count = transform.read([image.read() for image in example.images])
    return pixels if pixels.ndim == 3 else contact_sheet(pixels[:count])
