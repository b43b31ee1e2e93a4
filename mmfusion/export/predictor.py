"""One Python interface over a run and an export."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from mmfusion.data.builtin import translation_source
from mmfusion.errors import DataError, ExportError
from mmfusion.explain import Localisation
from mmfusion.export.arguments import checked_text, listed, shown, texts_listed
from mmfusion.export.folder import DESCRIPTION
from mmfusion.export.locating import locate_by_signatures, locate_in_run

Image = str | Path | bytes
Images = Image | Sequence[Image]
"""A picture or a clip's file; for a model of several images, also a list of files."""


class Caption(NamedTuple):
    """A caption of a picture.

    Attributes:
        text: The caption.
        score: Its mean log-probability a token; nearer to 0 is surer.
    """

    text: str
    score: float


class Attention(NamedTuple):
    """Where each token of a sentence looks in a picture.

    Attributes:
        maps: ``float32[layers, heads, T, rows, cols]``; each map sums to 1. Of a clip or several images
            ``float32[layers, heads, T, frames, rows, cols]``, with the frames that are padding at 0.
        tokens: The T tokens.
    """

    maps: np.ndarray
    tokens: list[str]


class Predictor:
    """Answers questions about pictures and sentences, from paths, bytes and strings.

    Made by `mmfusion.load`, over a run folder or an export: a SavedModel, LiteRT or ONNX.

    Args:
        functions: The signatures by name, each from named tensors to a dictionary of tensors.
        name: What they come from, for messages.
        batch_size: Pictures or sentences at a time. Default 32.
        frames: Pictures that an example has room for: frames of a clip, or images. Default 1.
        several: Whether these are several files, ``image_bytes: string[B, N]``. Default False.
        locate: From a picture's bytes and a phrase to a `mmfusion.explain.Localisation`, where there is a whole model to ask.
            Default: by the signatures.
    """

    def __init__(
        self,
        functions: dict[str, Callable[..., dict[str, tf.Tensor]]],
        *,
        name: str,
        batch_size: int = 32,
        frames: int = 1,
        several: bool = False,
        locate: Callable[..., Localisation] | None = None,
    ) -> None:
        self.functions = functions
        self.name = name
        self.batch_size = batch_size
        self.frames = frames
        self.several = several
        self._locate = locate

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
        if self._locate is None:
            return locate_by_signatures(self, image, phrase, method=method, sentence=sentence)
        content = read_image(image)
        check_image(image, content)
        return self._locate(content, phrase, method=method, sentence=sentence)

    def _ask(self, signature: str, **inputs: Sequence[Any]) -> dict[str, np.ndarray]:
        if signature not in self.functions:
            raise ExportError(
                f"cannot {signature.replace('_', ' ')}: the model has no such head",
                where=self.name,
                expected=signature,
                found=", ".join(self.signatures),
            )
        count = len(next(iter(inputs.values())))
        if not count:
            raise DataError("nothing was asked", where=signature, expected="at least one input", found="an empty list")
        answers = [self._ask_batch(signature, batch) for batch in self._batches(inputs, count)]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def _ask_batch(self, signature: str, batch: dict[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        values = dict(batch)
        files = [self._files_of(images) for images in batch.get("image_bytes", ())]
        contents = [[read_image(file) for file in row] for row in files]
        if files and self.several:
            longest = max(map(len, contents))
            values["image_bytes"] = [row + [b""] * (longest - len(row)) for row in contents]
        elif files:
            values["image_bytes"] = [row[0] for row in contents]
        tensors = {name: tf.constant(list(value), tf.string) for name, value in values.items()}
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


def load(path: str | Path, *, batch_size: int = 32) -> Predictor:
    """Loads a run folder, or an export: a SavedModel, LiteRT or ONNX.

    LiteRT and ONNX compute without TensorFlow; it reads the files and sentences. They know no ``attend``.

    Args:
        path: The folder.
        batch_size: Pictures or sentences at a time. Default 32.

    Returns:
        The `Predictor`.

    Raises:
        ExportError: If the folder is neither, or its runtime is not installed.
    """
    from mmfusion.training import RunFolder, load_run

    path = Path(path)
    described = _described(path)
    if described.get("kind", "saved_model") != "saved_model":
        return _load_portable(path, described, batch_size)
    if RunFolder(path).recipe.is_file() and not (path / "saved_model.pb").is_file():
        from mmfusion.export.serving_functions import as_tf_function, serving_functions, takes_several

        run = load_run(path)
        signatures = serving_functions(
            run.model,
            run.tokenizer,
            run.transform,
            **run.recipe.decoding.options(),
        )
        return Predictor(
            {name: as_tf_function(function) for name, function in signatures.items()},
            name=str(path),
            batch_size=batch_size,
            frames=run.transform.frames,
            several=takes_several(run.model),
            locate=functools.partial(locate_in_run, run),
        )
    if not (path / "saved_model.pb").is_file() or not (path / DESCRIPTION).is_file():
        raise ExportError(
            "neither a run nor an export of mmfusion",
            where=path,
            expected=f"recipe.yaml with best.keras, or saved_model.pb with {DESCRIPTION}",
            found="no such folder" if not path.exists() else "a file" if path.is_file() else "a folder without them",
            fix="name a folder that `mmfusion train` or `mmfusion export` made",
        )
    import tensorflow_text  # noqa: F401  registers the tokenizer's operators

    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise ExportError("broken export", where=path, found=str(error).splitlines()[0][:200]) from error
    functions = {name: function for name, function in loaded.signatures.items() if name != "serving_default"}
    frames, several = described.get("frames", 1), described.get("several_images", False)
    predictor = Predictor(functions, name=str(path), batch_size=batch_size, frames=frames, several=several)
    predictor._loaded = loaded  # type: ignore[attr-defined]  # keeps the variables alive
    return predictor


def _described(path: Path) -> dict[str, Any]:
    """What an export says of itself; nothing where there is none."""
    if not (path / DESCRIPTION).is_file():
        return {}
    try:
        return json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError("broken export", where=path / DESCRIPTION, found=str(error)[:200]) from error


def _load_portable(path: Path, described: dict[str, Any], batch_size: int) -> Predictor:
    from mmfusion.export.portable import FORMATS
    from mmfusion.export.portable_functions import portable_functions

    if described["kind"] not in FORMATS:
        raise ExportError(
            "an export of an unknown kind", where=path, expected=", ".join(("saved_model", *FORMATS)), found=described["kind"],
            fix="upgrade mmfusion",
        )  # fmt: skip
    functions, several = portable_functions(path, described), described["several_images"]
    return Predictor(functions, name=str(path), batch_size=batch_size, frames=described["frames"], several=several)


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
