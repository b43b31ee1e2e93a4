"""Captions as a person asks for them, of a run's whole model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from mmfusion.errors import DataError, ExportError
from mmfusion.export.answers import Caption
from mmfusion.export.arguments import checked_text, listed
from mmfusion.models import stream_captions

if TYPE_CHECKING:
    from mmfusion.config import DecodingConfig
    from mmfusion.text import WordPieceTokenizer
    from mmfusion.training import LoadedRun


def captions_of_run(run: LoadedRun, contents: Sequence[Sequence[bytes]], options: dict[str, Any]) -> list[list[Caption]]:
    """Writes captions of each picture, best first.

    Args:
        run: The run.
        contents: The bytes of the files of each picture, clip or set of images.
        options: See `mmfusion.export.Predictor.captions`.

    Returns:
        For each the captions that were found, with their mean log-probability a token.
    """
    _check(run)
    pixels, mask = _pixels(run, contents)
    asked = _of_words(run.tokenizer, options, len(contents))
    output = run.model.caption(pixels, mask, **asked)
    token_ids, scores, lengths = (np.asarray(part) for part in output)
    if token_ids.ndim == 2:
        token_ids, scores, lengths = token_ids[:, None], scores[:, None], lengths[:, None]
    elif asked.get("method", "beam") == "beam":
        # A beam's own score depends on the length penalty.
        scores = scores * np.maximum(lengths, 1) ** (asked.get("length_penalty", 1.0) - 1.0)
    texts = run.tokenizer.detokenize(token_ids.reshape(-1, token_ids.shape[-1])).numpy().reshape(scores.shape)
    return [
        [Caption(text.decode("utf-8", "replace"), float(score)) for text, score, length in zip(*of_image, strict=True) if length]
        for of_image in zip(texts, scores, lengths, strict=True)
    ]


def stream_of_run(run: LoadedRun, content: Sequence[bytes], options: dict[str, Any]) -> Iterator[str]:
    """Yields a picture's greedy caption as far as it is written.

    Args:
        run: The run.
        content: The bytes of its files.
        options: See `mmfusion.export.Predictor.stream_caption`.
    """
    _check(run)
    pixels, mask = _pixels(run, [content])
    written: list[int] = []
    said = run.recipe.decoding.options("greedy")
    said.pop("method")
    for tokens in stream_captions(run.model, pixels, mask, **_of_words(run.tokenizer, said | options, 1)):
        written.append(int(tokens[0]))
        yield run.tokenizer.detokenize([written]).numpy()[0].decode("utf-8", "replace")


def over_recipe(recipe: DecodingConfig, options: dict[str, Any]) -> dict[str, Any]:
    """What a person asks for, laid over what the recipe says of that method.

    Args:
        recipe: How the run decodes.
        options: What is asked for; with several beams the method is ``"beam"`` unless it is named.

    Example:
        >>> from mmfusion.config import DecodingConfig
        >>> from mmfusion.export.run_captions import over_recipe
        >>> recipe = DecodingConfig(method="beam", beam_size=3, temperature=0.5)
        >>> over_recipe(recipe, {"max_tokens": 5})
        {'method': 'beam', 'beam_size': 3, 'max_tokens': 5}
        >>> over_recipe(recipe, {"method": "sample"})
        {'method': 'sample', 'temperature': 0.5}
    """
    method = options.get("method") or ("beam" if options.get("beam_size", 1) > 1 else recipe.method)
    return {**(recipe.options(method) if method in recipe.of_method else {}), **options}


def _check(run: LoadedRun) -> None:
    if run.model.captioning_head is None:
        raise ExportError(
            "cannot caption: the model has no such head",
            where=run.folder.path,
            expected="captioning",
            found=", ".join(run.model.heads),
        )


def _pixels(run: LoadedRun, contents: Sequence[Sequence[bytes]]) -> tuple[tf.Tensor, tf.Tensor | None]:
    several = hasattr(run.model.image_encoder, "max_images")
    seen: list[Any] = [run.transform(tf.constant(list(files) if several else files[0])) for files in contents]
    if run.transform.frames == 1:
        return tf.stack(seen), None
    return tf.stack([clip.image for clip in seen]), tf.stack([clip.image_mask for clip in seen])


def _of_words(tokenizer: WordPieceTokenizer, options: dict[str, Any], count: int) -> dict[str, Any]:
    """The options with token ids in place of words."""
    options = dict(options)
    if (prefix := options.pop("prefix", None)) is not None:
        options["prefix_ids"] = np.repeat([_ids(tokenizer, checked_text(prefix, "prefix"), "prefix")], count, axis=0)
    if (required := options.pop("required", None)) is not None:
        phrases = listed(required, "required", "['a dog']")
        options["required"] = [_ids(tokenizer, checked_text(phrase, "required"), "required") for phrase in phrases]
    if (forbidden := options.pop("forbidden", None)) is not None:
        words = [
            _ids(tokenizer, checked_text(word, "forbidden"), "forbidden") for word in listed(forbidden, "forbidden", "['man']")
        ]
        for ids in words:
            if len(ids) > 1:
                raise DataError(
                    "a word of several tokens cannot be forbidden alone", where="forbidden", expected="words of the vocabulary",
                    found=" ".join(tokenizer.vocabulary[token] for token in ids),
                )  # fmt: skip
        options["forbidden_ids"] = (*options.get("forbidden_ids", ()), *(ids[0] for ids in words))
    return options


def _ids(tokenizer: WordPieceTokenizer, text: str, what: str) -> list[int]:
    tokens = tokenizer(tf.constant([text]))
    ids = [int(token) for token in tokens.token_ids[0][tokens.token_mask[0]]][1:-1]
    unknown = tokenizer.vocabulary.index("[UNK]")
    if not ids or unknown in ids:
        raise DataError("no words of the vocabulary", where=what, expected="words that the model knows", found=repr(text))
    return ids
