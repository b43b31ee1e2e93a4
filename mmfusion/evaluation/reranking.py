"""Retrieval in two stages: fast similarities first, then a matching score for the best candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmfusion.errors import ConfigError, DataError
from mmfusion.evaluation.candidates import first_candidates
from mmfusion.evaluation.retrieval_inputs import Direction, search_directions
from mmfusion.evaluation.retrieval_metrics import RetrievalRanks, metrics_of_ranks, pessimistic_ranks, recall_at

MatchFunction = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.ArrayLike]
Progress = Callable[[int, int], None]


class _FirstStage(NamedTuple):
    """Of each query: k candidates, their similarity, whether they are right; and the rank among all items."""

    candidates: npt.NDArray[np.int64]
    scores: npt.NDArray[Any]
    right: npt.NDArray[np.bool_]
    ranks: npt.NDArray[np.int64]


def rerank(
    similarity: npt.ArrayLike,
    image_id: npt.ArrayLike,
    text_image_id: npt.ArrayLike,
    match_fn: MatchFunction,
    *,
    top_k: int,
    fuse: float = 0.0,
    image_query: npt.ArrayLike | None = None,
    text_query: npt.ArrayLike | None = None,
    batch_size: int = 256,
    chunk_size: int = 256,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Measures retrieval after the first `top_k` items of each query are put into a new order, in both directions.

    The new order is by ``match + fuse * similarity``. Items beyond the first `top_k` follow in their first order, so a
    right item that the first stage did not find keeps its rank. Ties count against the model, as in
    `retrieval_metrics`.

    Args:
        similarity: ``float[I, T]`` of the first stage.
        image_id: ``int[I]``.
        text_image_id: ``int[T]``.
        match_fn: From ``int64[N]`` rows of images and ``int64[N]`` columns of texts to ``float[N]`` scores of the
            pairs, higher is closer. A logit and a probability give the same order as long as `fuse` is 0; logits do not
            saturate, so prefer them. A pair that is a candidate in both directions is scored once.
        top_k: Candidates a query; all if the gallery has fewer.
        fuse: Weight of the similarity beside the matching score. Default 0.
        image_query: ``bool[I]``, the images that are asked about. Default all.
        text_query: ``bool[T]``, the texts that are asked about. Default all.
        batch_size: Pairs a call of `match_fn`. Default 256.
        chunk_size: Queries at a time in the first stage. Default 256.
        progress: Called with (pairs done, pairs in all) after each batch.

    Returns:
        What `retrieval_metrics` returns, of the new order, and the candidates' ceilings ``i2t_ceiling`` and
        ``t2i_ceiling``: the recall at `top_k` of the first stage, which recall at 1 of the second can reach but not
        pass.

    Raises:
        ConfigError: If `top_k` or `batch_size` is less than 1, or `fuse` is not finite.
        DataError: As in `retrieval_metrics`, or if `match_fn` gives NaN or the wrong number of scores.

    Example:
        >>> similarity = np.array([[0.5, 0.6, 0.1], [0.2, 0.9, 0.3], [0.8, 0.7, 0.4]])
        >>> truth = lambda images, texts: (images == texts).astype("float32")
        >>> metrics = rerank(similarity, [0, 1, 2], [0, 1, 2], truth, top_k=2)
        >>> [round(metrics[name], 1) for name in ("i2t_r1", "i2t_ceiling", "t2i_r1", "t2i_ceiling")]
        [66.7, 66.7, 100.0, 100.0]

    References:
        Li et al. 2021, "Align before fuse" (ALBEF), section 4.3: candidates by similarity, ranked by the matching
        score.
    """
    if batch_size < 1:
        raise ConfigError("an empty batch", where="batch_size", expected="at least 1", found=batch_size)
    if not np.isfinite(fuse):
        raise ConfigError("an impossible weight", where="fuse", expected="a finite number", found=fuse)
    directions = search_directions(similarity, image_id, text_image_id, image_query, text_query)
    texts = directions[0].scores.shape[1]
    stages = [_first_stage(direction, top_k, chunk_size) for direction in directions]
    image_pairs = directions[0].queries[:, None] * texts + stages[0].candidates
    text_pairs = stages[1].candidates * texts + directions[1].queries[:, None]
    pairs, inverse = np.unique(np.concatenate([image_pairs.ravel(), text_pairs.ravel()]), return_inverse=True)
    scores = _match(match_fn, pairs // texts, pairs % texts, batch_size, progress)[inverse]
    matches = np.split(scores, [image_pairs.size])
    ranks = RetrievalRanks(
        *(_second_ranks(stage, match.reshape(stage.right.shape), fuse) for stage, match in zip(stages, matches, strict=True))
    )
    metrics = metrics_of_ranks(ranks)
    for direction, stage in zip(directions, stages, strict=True):
        metrics[f"{direction.name}_ceiling"] = recall_at(stage.ranks, top_k)
    return metrics


def _first_stage(direction: Direction, top_k: int, chunk_size: int) -> _FirstStage:
    parts = []
    for _, scores, right in direction.chunks(chunk_size):
        candidates = first_candidates(scores, top_k, right)
        parts.append(
            _FirstStage(
                candidates,
                np.take_along_axis(scores, candidates, axis=1),
                np.take_along_axis(right, candidates, axis=1),
                pessimistic_ranks(scores, right),
            )
        )
    return _FirstStage(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _match(
    match_fn: MatchFunction,
    images: npt.NDArray[np.int64],
    texts: npt.NDArray[np.int64],
    batch_size: int,
    progress: Progress | None,
) -> npt.NDArray[np.float64]:
    scores = np.empty(len(images), np.float64)
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        batch = np.asarray(match_fn(images[rows], texts[rows]))
        if batch.shape != images[rows].shape:
            raise DataError(
                "the matching function gave the wrong number of scores",
                expected=f"float{list(images[rows].shape)}",
                found=f"{batch.dtype}{list(batch.shape)}",
            )
        bad = np.flatnonzero(np.isnan(batch))
        if len(bad):
            raise DataError(
                "a matching score is NaN",
                where=f"image {images[rows][bad[0]]}, text {texts[rows][bad[0]]}",
                expected="a number",
            )
        scores[rows] = batch
        if progress is not None:
            progress(min(start + batch_size, len(images)), len(images))
    return scores


def _second_ranks(stage: _FirstStage, match: npt.NDArray[np.float64], fuse: float) -> npt.NDArray[np.int64]:
    with np.errstate(invalid="ignore"):  # told below, in words
        scores = match + fuse * stage.scores if fuse else match
    if np.isnan(scores).any():
        raise DataError("matching score and similarity cancel out", expected="finite numbers to fuse", found="inf - inf")
    return np.where(stage.right.any(axis=1), pessimistic_ranks(scores, stage.right), stage.ranks)
