"""An index of pictures that answers sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmfusion.errors import DataError, ExportError

if TYPE_CHECKING:
    from mmfusion.export import Predictor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


class Hit(NamedTuple):
    """A picture that was found.

    Attributes:
        path: The picture.
        similarity: Cosine of its and the query's embedding, from -1 to 1; None where the model does not embed.
        match: Probability of the matching head, or None where it was not asked.
    """

    path: Path
    similarity: float | None
    match: float | None


class ImageIndex:
    """Pictures embedded once and searched exactly by inner product (FAISS).

    A model that matches but does not embed is asked about every picture at every search.

    Args:
        predictor: The model, as `mmfusion.load` gives it.

    Raises:
        ExportError: If the model can neither embed nor match.

    Example:
        >>> from mmfusion import load
        >>> from mmfusion.retrieval import ImageIndex, list_images
        >>> index = ImageIndex(load("runs/quickstart"))  # doctest: +SKIP
        >>> index.add(list_images("photos"))  # doctest: +SKIP
        >>> [hit.path.name for hit in index.search("a red heart", top_k=3)]  # doctest: +SKIP
        ['heart.png', 'beating-heart.png', 'red-square.png']
    """

    def __init__(self, predictor: Predictor) -> None:
        if not {"encode_image", "match"} & set(predictor.signatures):
            raise ExportError(
                "cannot search: the model neither embeds nor matches pictures",
                where=predictor.name,
                expected="encode_image or match",
                found=", ".join(predictor.signatures),
            )
        self.predictor = predictor
        self.embeds = "encode_image" in predictor.signatures
        self.paths: list[Path] = []
        self.unreadable: list[tuple[Path, str]] = []
        self._index: Any = None

    def add(self, paths: Sequence[Path], *, progress: Callable[[int, int], None] | None = None) -> None:
        """Adds pictures, embedded where the model does that; an unreadable one is skipped and listed in `unreadable`.

        Args:
            paths: The pictures.
            progress: Called with (done, total).
        """
        import faiss

        step = self.predictor.batch_size
        for start in range(0, len(paths), step):
            batch = list(paths[start : start + step])
            if not self.embeds:
                self.paths += self._readable(batch)
                continue
            try:
                embeddings = self.predictor.encode_image(batch)
            except DataError:
                batch, embeddings = self._one_by_one(batch)
            if len(batch):
                if self._index is None:
                    self._index = faiss.IndexFlatIP(embeddings.shape[1])
                self._index.add(np.ascontiguousarray(embeddings, dtype=np.float32))
                self.paths += batch
            if progress is not None:
                progress(min(start + step, len(paths)), len(paths))

    def search(self, text: str, *, top_k: int = 5, rerank: int = 0) -> list[Hit]:
        """Finds the pictures that fit a sentence best.

        Args:
            text: The sentence.
            top_k: How many to return. Default 5.
            rerank: How many candidates the matching head reorders; 0 leaves the dual encoder's order. Default 0.

        Returns:
            The hits, best first.

        Raises:
            DataError: If the index is empty, or the sentence is no query; see `check_query`.
        """
        check_query(text)
        if not self.paths:
            raise DataError("the index is empty", found=f"{len(self.unreadable)} unreadable pictures", fix="add pictures first")
        if not self.embeds:
            scores = self.predictor.match(self.paths, [text] * len(self.paths))
            matched = [Hit(path, None, float(score)) for path, score in zip(self.paths, scores, strict=True)]
            return sorted(matched, key=lambda hit: -(hit.match or 0.0))[:top_k]
        count = min(max(top_k, rerank), len(self.paths))
        similarity, rows = self._index.search(self.predictor.encode_text([text]), count)
        hits = [Hit(self.paths[row], float(value), None) for row, value in zip(rows[0], similarity[0], strict=True)]
        if rerank and "match" in self.predictor.signatures:
            candidates = hits[:rerank]
            scores = self.predictor.match([hit.path for hit in candidates], [text] * len(candidates))
            candidates = [hit._replace(match=float(score)) for hit, score in zip(candidates, scores, strict=True)]
            hits = sorted(candidates, key=lambda hit: -(hit.match or 0.0)) + hits[rerank:]
        return hits[:top_k]

    def _readable(self, batch: list[Path]) -> list[Path]:
        from mmfusion.export.predictor import check_image, read_image

        kept = []
        for path in batch:
            try:
                check_image(path, read_image(path))
                kept.append(path)
            except DataError as error:
                self.unreadable.append((path, str(error)))
        return kept

    def _one_by_one(self, batch: list[Path]) -> tuple[list[Path], np.ndarray]:
        kept, embeddings = [], []
        for path in batch:
            try:
                embeddings.append(self.predictor.encode_image([path]))
                kept.append(path)
            except DataError as error:
                self.unreadable.append((path, str(error)))
        return kept, np.concatenate(embeddings) if embeddings else np.zeros((0, 1), np.float32)


def check_query(text: str) -> None:
    """Says early that a text is no query.

    Args:
        text: The text.

    Raises:
        DataError: If it is empty, or longer than any caption may be.
    """
    from mmfusion.data.captions import MAX_CHARACTERS

    if not text.strip():
        raise DataError("an empty query", where="text", expected="a sentence", found=repr(text))
    if len(text) > MAX_CHARACTERS:
        raise DataError(
            "the query is too long", where="text", expected=f"at most {MAX_CHARACTERS:,} characters", found=f"{len(text):,}"
        )


def list_images(folder: Path) -> list[Path]:
    """All pictures below a folder, by their endings, in a fixed order.

    Args:
        folder: The folder.

    Raises:
        DataError: If there is no such folder.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else None
        raise DataError("no such folder", where=folder, expected="a folder of pictures", found=found)
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
