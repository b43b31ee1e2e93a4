"""One Python interface over a run and an export."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from mmfusion.data.builtin import translation_source
from mmfusion.errors import DataError, ExportError
from mmfusion.explain import Localisation
from mmfusion.export.answers import Attention, Caption
from mmfusion.export.arguments import checked_text, listed, shown, texts_listed
from mmfusion.export.locating import locate_by_signatures, locate_in_run
from mmfusion.export.option_inputs import option_inputs, seeds_of
from mmfusion.export.run_captions import captions_of_run, over_recipe, stream_of_run

if TYPE_CHECKING:
    from mmfusion.training import LoadedRun

Image = str | Path | bytes
Images = Image | Sequence[Image]
"""A picture or a clip's file; for a model of several images, also a list of files."""


class Predictor:
    """Answers questions about pictures and sentences, from paths, bytes and strings.

    Made by `mmfusion.load`, over a run folder or an export: a SavedModel, LiteRT or ONNX.

    Args:
        functions: The signatures by name, each from named tensors to a dictionary of tensors.
        name: What they come from, for messages.
        batch_size: Pictures or sentences at a time. Default 32.
        frames: Pictures that an example has room for: frames of a clip, or images. Default 1.
        several: Whether these are several files, ``image_bytes: string[B, N]``. Default False.
        run: The run, where there is a whole model to ask for more than the signatures give. Default None.
        caption_options: What an export says of captions with options, where it has them. Default None.
    """

    def __init__(
        self,
        functions: dict[str, Callable[..., dict[str, tf.Tensor]]],
        *,
        name: str,
        batch_size: int = 32,
        frames: int = 1,
        several: bool = False,
        run: LoadedRun | None = None,
        caption_options: Mapping[str, int] | None = None,
    ) -> None:
        self.functions = functions
        self.name = name
        self.batch_size = batch_size
        self.frames = frames
        self.several = several
        self._run = run
        self._caption_options = caption_options

    @property
    def signatures(self) -> tuple[str, ...]:
        """What can be asked."""
        return tuple(sorted(self.functions))

    def encode_image(self, images: Sequence[Images]) -> np.ndarray:
        """Pictures to unit-length ``float32[N, E]``."""
        return self._ask("encode_image", image_bytes=_pictures(images))["embedding"]

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Sentences to unit-length ``float32[N, E]``."""
        return self._ask("encode_text", text=texts_listed(texts))["embedding"]

    def match(self, images: Sequence[Images], texts: Sequence[str]) -> np.ndarray:
        """Probability ``float32[N]`` that sentence n describes picture n."""
        pairs = _pairs(images, texts)
        return self._ask("match", image_bytes=pairs[0], text=pairs[1])["score"]

    def caption(self, images: Sequence[Images]) -> list[Caption]:
        """Writes a caption for each picture."""
        answer = self._ask("caption", image_bytes=_pictures(images))
        return [
            Caption(text.decode("utf-8", "replace"), float(score))
            for text, score in zip(answer["caption"], answer["score"], strict=True)
        ]

    def captions(self, images: Sequence[Images], **options: Any) -> list[list[Caption]]:
        """Writes captions of each picture, best first, as the recipe says but for the options.

        A run takes all options. An export with ``caption_sample`` and ``caption_beam`` takes theirs, and as many captions as it
        was made for; any other takes none. Sampling takes ``seeds``, one for each picture, or one number, which stands for it and
        those that follow.

        Args:
            images: The pictures.
            **options: Those of `mmfusion.models.ImageTextModel.caption`, such as ``method="sample", num_samples=3``; and in
                words ``prefix``, what each caption begins with, ``required``, a list of phrases that each has (with beam
                search), and ``forbidden``, a list of words that none has.

        Raises:
            ExportError: If the export does not take these options.
            DataError: If a picture cannot be read, or a word is not in the vocabulary.
        """
        if self._caption_options is not None:
            return self._captions_by_signature(_pictures(images), options)
        run, pictures = self._whole("captions with options; one made with --with-options does"), _pictures(images)
        inputs: dict[str, Sequence[Any]] = {"images": pictures}
        options = over_recipe(run.recipe.decoding, options)
        if options["method"] == "sample":
            inputs["seeds"] = seeds_of(options.pop("seeds", 0), len(pictures), self.name).tolist()
        found: list[list[Caption]] = []
        for batch in self._batches(inputs, len(pictures)):
            own = {"seeds": batch["seeds"]} if "seeds" in batch else {}
            found += captions_of_run(run, self._contents(batch["images"]), options | own)
        return found

    def _captions_by_signature(self, images: list[Any], options: dict[str, Any]) -> list[list[Caption]]:
        assert self._caption_options is not None
        name, numbers, seeds = option_inputs(options, self._caption_options, len(images), self.name)
        inputs: dict[str, Any] = {"image_bytes": images}
        if name == "caption_sample":
            inputs["seed"] = seeds
        answer = self._ask(name, numbers, **inputs)
        return [
            [
                Caption(text.decode("utf-8", "replace"), float(score))
                for text, score in zip(*rows, strict=True)
                if np.isfinite(score)
            ]
            for rows in zip(answer["caption"], answer["score"], strict=True)
        ]

    def stream_caption(self, image: Images, **options: Any) -> Iterator[str]:
        """Yields the greedy caption of one picture as far as it is written, word by word; of a run alone.

        Args:
            image: The picture.
            **options: As of `captions`, those of greedy decoding.
        """
        run = self._whole("a caption while it is written")
        return stream_of_run(run, self._contents([image])[0], options)

    def _whole(self, what: str) -> LoadedRun:
        if self._run is None:
            raise ExportError(f"this export does not give {what}", where=self.name, expected="a run folder", fix="ask the run")
        return self._run

    def _contents(self, images: Sequence[Images]) -> list[list[bytes]]:
        """The files' bytes of each example; refuses what is no picture."""
        rows = []
        for example in images:
            files = self._files_of(example)
            rows.append([read_image(file) for file in files])
            for file, content in zip(files, rows[-1], strict=True):
                check_image(file, content)
        return rows

    def translate(self, images: Sequence[Image], texts: Sequence[str], language: str) -> list[Caption]:
        """Translates sentence n, with the help of picture n, into a language by its short name, such as ``"de"``."""
        pairs = _pairs(images, texts)
        sources = [translation_source(text, checked_text(language, "language")) for text in pairs[1]]
        answer = self._ask("translate", image_bytes=pairs[0], text=sources)
        return [
            Caption(text.decode("utf-8", "replace"), float(score))
            for text, score in zip(answer["translation"], answer["score"], strict=True)
        ]

    def attend(self, image: Images, text: str) -> Attention:
        """Where each token of the sentence looks in the picture."""
        answer = self._ask("attend", image_bytes=[image], text=[checked_text(text)])
        tokens = [token.decode("utf-8", "replace") for token in answer["tokens"][0]]
        return Attention(answer["attention"][0], tokens)

    def localise(self, image: Image, phrase: str, *, method: str = "attention", sentence: str | None = None) -> Localisation:
        """Where in the picture the phrase is: ``heat``, ``float32[rows, cols]``, and ``score``, how well it fits the picture.

        Args:
            image: The picture.
            phrase: What to look for, as "red heart".
            method: See `mmfusion.explain.localise`; an export knows ``"attention"`` alone. Default ``"attention"``.
            sentence: A sentence that holds the phrase, read instead of it. Default: the phrase.

        Raises:
            ExportError: If the model cannot be asked so.
            DataError: If the picture cannot be read, or the phrase is empty or not in the sentence.
        """
        checked_text(phrase, "phrase")
        if not phrase.strip():
            raise DataError("an empty phrase", where="phrase", expected="words to look for", found=repr(phrase))
        if sentence is not None:
            checked_text(sentence, "sentence")
        if "translate" in self.functions:
            raise ExportError(
                "a model that translates looks for no phrases", where=self.name, fix="name one that matches, embeds or captions"
            )
        if self.frames > 1:
            raise ExportError(
                "phrases are looked for in single pictures", where=self.name, expected="a model that sees one at a time",
                found=f"one that sees {self.frames}",
            )  # fmt: skip
        if self._run is None:
            return locate_by_signatures(self, image, phrase, method=method, sentence=sentence)
        content = read_image(image)
        check_image(image, content)
        return locate_in_run(self._run, content, phrase, method=method, sentence=sentence)

    def _ask(
        self, signature: str, numbers: Mapping[str, np.ndarray] | None = None, /, **inputs: Sequence[Any]
    ) -> dict[str, np.ndarray]:
        if signature not in self.functions:
            raise ExportError(
                f"cannot {signature.replace('_', ' ')}: {'the model' if self._run else 'the export'} has no such function",
                where=self.name,
                expected=signature,
                found=", ".join(self.signatures),
            )
        count = len(next(iter(inputs.values())))
        if not count:
            raise DataError("nothing was asked", where=signature, expected="at least one input", found="an empty list")
        answers = [self._ask_batch(signature, batch, numbers or {}) for batch in self._batches(inputs, count)]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def _ask_batch(
        self, signature: str, batch: dict[str, Sequence[Any]], numbers: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        values = dict(batch)
        files = [self._files_of(images) for images in batch.get("image_bytes", ())]
        contents = [[read_image(file) for file in row] for row in files]
        if files and self.several:
            longest = max(map(len, contents))
            values["image_bytes"] = [row + [b""] * (longest - len(row)) for row in contents]
        elif files:
            values["image_bytes"] = [row[0] for row in contents]
        tensors = {
            name: tf.constant(value) if isinstance(value, np.ndarray) else tf.constant(list(value), tf.string)
            for name, value in {**values, **numbers}.items()
        }
        try:
            return {name: value.numpy() for name, value in self.functions[signature](**tensors).items()}
        except (tf.errors.OpError, UnicodeDecodeError) as error:
            for row, read in zip(files, contents, strict=True):
                for file, content in zip(row, read, strict=True):
                    check_image(file, content)
            raise ExportError("the model refused the input", where=self.name, found=graph_reason(error)) from error

    def _files_of(self, images: Images) -> list[Image]:
        if not isinstance(images, list | tuple):
            return [images]  # type: ignore[list-item]  # `read_image` refuses what is no file
        if not 1 <= len(images) <= (self.frames if self.several else 1):
            room = f"1 to {self.frames} pictures" if self.several else "one picture, or one file with a clip"
            raise DataError("another number of pictures than the model takes", where=self.name, expected=room, found=len(images))
        return list(images)

    def _batches(self, inputs: dict[str, Sequence[Any]], count: int) -> Iterator[dict[str, Sequence[Any]]]:
        for start in range(0, count, self.batch_size):
            yield {name: values[start : start + self.batch_size] for name, values in inputs.items()}


def _pictures(images: Any) -> list[Any]:
    return listed(images, "images", "['photo.jpg']")


def _pairs(images: Any, texts: Any) -> tuple[list[Any], list[str]]:
    """As many pictures as sentences."""
    pictures, words = _pictures(images), texts_listed(texts)
    if len(pictures) != len(words):
        raise DataError("as many sentences as pictures are needed", expected=len(pictures), found=len(words))
    return pictures, words


def graph_reason(error: Exception) -> str:
    """What of a graph's error says what is wrong: the message of an assertion, else the first line that says anything."""
    asserted = re.search(r"assertion failed: \[(.*?)\]", str(error))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [asserted[1]] if asserted else lines[1:] or lines or [type(error).__name__]
    return told[0][:300]


def read_image(image: Image) -> bytes:
    """The bytes of a picture given by path or as bytes.

    Raises:
        DataError: If it is neither, or the file cannot be read.
    """
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str | os.PathLike):
        raise DataError("no picture's file", where="image", expected="a path, or a file's bytes", found=shown(image))
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise DataError("cannot read the image", where=image, found=error.strerror) from error


def check_image(image: Image, content: bytes) -> None:
    """Raises a `DataError` that names the picture if its bytes are no picture."""
    from mmfusion.data import decode_image

    try:
        decode_image(tf.constant(content))
    except (tf.errors.OpError, DataError) as error:
        name = "image_bytes" if isinstance(image, bytes) else image
        raise DataError(
            "not a readable image",
            where=name,
            expected="JPEG, PNG, WebP, GIF or BMP",
            found=f"{len(content)} bytes starting with {content[:8]!r}",
        ) from error
