"""Images with many texts outside of a graph: graphs of few sizes, little padding, each image read once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from keras import KerasTensor, ops

from mmfusion.decoding import compiled
from mmfusion.models.captioning import filled_up, power_of_two
from mmfusion.models.matching import likeliest, match_read, read_images, spread

if TYPE_CHECKING:
    from mmfusion.models.image_text_model import ImageTextModel

PAIRS = 32
"""Pairs of image and text of one graph: enough for matrix products to be of full speed, few enough to be of about one length."""
LENGTHS = 8
"""Texts are cut to a multiple of so many tokens."""


class _Texts(NamedTuple):
    """All texts: encoded, which tokens are real (None if all are), so many tokens each, and embedded where asked for."""

    tokens: KerasTensor
    mask: np.ndarray | None
    lengths: np.ndarray
    embeddings: KerasTensor | None


class Matcher:
    """Scores images with many texts, as `mmfusion.models.match_matrix` does outside of a graph.

    Of each image its texts are sorted by length, and scored `PAIRS` at a time, cut to the longest of them (to the next multiple
    of `LENGTHS`). So there are few sizes of graphs, and what is behind all real tokens is not computed.

    Args:
        model: The model. Its newest weights count always.
    """

    def __init__(self, model: ImageTextModel) -> None:
        def read(images: KerasTensor, image_mask: KerasTensor | None, embed: bool) -> Any:
            patches, patch_mask = model.encode_patches(images, image_mask, training=False)
            embeddings = model.embed_patches(patches, training=False, patch_mask=patch_mask) if embed else None
            return read_images(model, patches, patch_mask), embeddings

        def encode(token_ids: KerasTensor, token_mask: KerasTensor | None, embed: bool) -> Any:
            text = model.text_encoder(token_ids, token_mask=token_mask, training=False)
            return text, model.encode_text(token_ids, token_mask, training=False, text=text) if embed else None

        variables = model.variables
        self._read = {
            embed: compiled(lambda images, mask, embed=embed: read(images, mask, embed), variables) for embed in (False, True)
        }
        self._encode = {
            embed: compiled(lambda ids, mask, embed=embed: encode(ids, mask, embed), variables) for embed in (False, True)
        }
        self._match = compiled(lambda images, text, mask: match_read(model, images, text, mask), variables)

    def __call__(
        self,
        images: KerasTensor,
        token_ids: KerasTensor,
        token_mask: KerasTensor | None = None,
        *,
        top_k: int | None = None,
        candidates: KerasTensor | None = None,
        image_mask: KerasTensor | None = None,
    ) -> KerasTensor:
        """``float32[I, N]``; arguments are those of `mmfusion.models.match_matrix`, checked."""
        rows, count = images.shape[0], np.shape(token_ids)[0]
        if candidates is not None:
            candidates = ops.convert_to_numpy(candidates)
        everything = candidates is None and (top_k is None or top_k >= count)
        if everything:
            top_k, candidates = None, np.broadcast_to(np.arange(count), (rows, count))
        texts = self._texts(token_ids, token_mask, embed=top_k is not None)
        number: Any = top_k if candidates is None else candidates.shape[1]
        size = min(max(PAIRS // power_of_two(number), 1), power_of_two(rows))
        scores = []
        for start in range(0, rows, size):
            stop = min(start + size, rows)
            some, mask = (None if x is None else filled_up(x[start:stop], stop - start, size) for x in (images, image_mask))
            known, embeddings = self._read[top_k is not None](some, mask)
            if candidates is None:
                chosen = ops.convert_to_numpy(likeliest(embeddings, texts.embeddings, top_k))
            else:
                chosen = candidates[start:stop]
                chosen = np.concatenate([chosen, np.repeat(chosen[:1], size - len(chosen), axis=0)])
            found = self._scores(known, texts, chosen)
            scores.append((found if everything else spread(found, chosen, count))[: stop - start])
        return ops.concatenate(scores)

    def _texts(self, token_ids: KerasTensor, token_mask: KerasTensor | None, embed: bool) -> _Texts:
        ids = ops.convert_to_numpy(token_ids)
        count, longest = ids.shape
        mask = None if token_mask is None else np.broadcast_to(ops.convert_to_numpy(token_mask), ids.shape)
        lengths = np.full(count, longest) if mask is None else np.max(np.where(mask, np.arange(longest) + 1, 1), axis=1)
        longest = _cut(lengths, longest)
        ids, mask = ids[:, :longest], None if mask is None else mask[:, :longest]
        encoded = []
        for start, size in _parts(count):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            encoded.append(self._encode[embed](ids[rows], None if mask is None else mask[rows]))
        tokens, embeddings = (None if x[0] is None else ops.concatenate(x)[:count] for x in zip(*encoded, strict=True))
        return _Texts(tokens, mask, lengths, embeddings)

    def _scores(self, images: Any, texts: _Texts, chosen: np.ndarray) -> KerasTensor:
        """``float32[B, C]`` of ``int[B, C]`` texts."""
        order = np.argsort(texts.lengths[chosen], axis=1, kind="stable")
        ordered, scores = np.take_along_axis(chosen, order, axis=1), []
        for start, size in _parts(chosen.shape[1]):
            columns = ordered[:, np.minimum(np.arange(start, start + size), chosen.shape[1] - 1)]
            length = _cut(texts.lengths[columns], texts.tokens.shape[1])
            mask = None if texts.mask is None else texts.mask[columns][:, :, :length]
            scores.append(self._match(images, ops.take(texts.tokens[:, :length], columns, axis=0), mask))
        return ops.take_along_axis(ops.concatenate(scores, axis=1), np.argsort(order, axis=1), axis=1)


def _cut(lengths: np.ndarray, longest: int) -> int:
    return int(min(-(-int(lengths.max()) // LENGTHS) * LENGTHS, longest))


def _parts(count: int) -> list[tuple[int, int]]:
    """Where parts of `PAIRS` start, and their size: of the last the next power of two."""
    return [(start, min(PAIRS, power_of_two(count - start))) for start in range(0, count, PAIRS)]
