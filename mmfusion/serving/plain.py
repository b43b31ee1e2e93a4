"""The plain routes' requests: a picture or a sentence as a person would send it, into rows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from mmfusion.data.builtin import translation_source
from mmfusion.errors import DataError
from mmfusion.serving.limits import Limits
from mmfusion.serving.signature import Signature
from mmfusion.serving.wire import Row, check_count, kind, read_base64, read_json

ROUTES = ("caption", "encode_image", "encode_text", "match", "attend", "translate")
"""The signatures that have a plain route of their own name."""

_KEYS = ("image", "images", "text", "texts", "language")


class Question(NamedTuple):
    """What was asked.

    Attributes:
        images: Files.
        texts: Sentences.
        language: Into which to translate, or None.
        listed: Whether it was asked about a list, so that a list is to be answered.
    """

    images: list[bytes]
    texts: list[str]
    language: str | None
    listed: bool


async def read_question(request: Request, body: bytes, limits: Limits) -> Question:
    """Takes a request apart: JSON, a picture's bytes as they are, or a form with files.

    Args:
        request: The request; a picture's sentence stands in the query (``?text=…``).
        body: Its body.
        limits: How many pictures and sentences there may be.

    Returns:
        The `Question`.

    Raises:
        DataError: If it is none of these.
    """
    sort = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sort.startswith("image/") or sort == "application/octet-stream":
        query = request.query_params
        return Question([body], query.getlist("text"), query.get("language"), len(query.getlist("text")) > 1)
    if sort == "multipart/form-data":
        return await _read_form(request, body, limits)
    return read_json_question(body)


async def _read_form(request: Request, body: bytes, limits: Limits) -> Question:
    async def stream() -> AsyncIterator[bytes]:
        yield body
        yield b""

    most = limits.max_instances
    parser = MultiPartParser(request.headers, stream(), max_files=most, max_fields=2 * most, max_part_size=limits.max_body)  # type: ignore[arg-type]
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise DataError("not a form", where="body", expected="multipart/form-data", found=str(error)[:200]) from None
    images: list[bytes] = []
    texts: list[str] = []
    language = None
    for key, value in form.multi_items():
        if key == "image" and isinstance(value, UploadFile):
            images.append(await value.read())
        elif key == "text" and isinstance(value, str):
            texts.append(value)
        elif key == "language" and isinstance(value, str):
            language = value
        else:
            expected = "image (a file), text or language"
            raise DataError("not a part of a question", where="body", expected=expected, found=repr(key)[:100])
    return Question(images, texts, language, max(len(images), len(texts)) > 1)


def read_json_question(body: bytes) -> Question:
    """A question in JSON: ``{"image": BASE64}`` or ``{"images": […]}``, ``{"text": …}`` or ``{"texts": […]}``.

    Args:
        body: The body.

    Raises:
        DataError: If it is something else.

    Example:
        >>> read_json_question(b'{"image": "Qk0=", "texts": ["a dog", "a cat"]}')
        Question(images=[b'BM'], texts=['a dog', 'a cat'], language=None, listed=True)
    """
    content = read_json(body)
    unknown = sorted(set(content) - set(_KEYS))
    if unknown:
        raise DataError("not a part of a question", where="body", expected=", ".join(_KEYS), found=", ".join(unknown)[:200])
    for one, several in (("image", "images"), ("text", "texts")):
        if one in content and several in content:
            raise DataError("asked twice", where="body", expected=f"{one} or {several}", found="both")
        if several in content and not isinstance(content[several], list):
            raise DataError("not a list", where=several, expected="an array", found=kind(content[several]))
    images = [_image(value, f"images[{number}]") for number, value in enumerate(content.get("images", ()))]
    images += [_image(content["image"], "image")] if "image" in content else []
    texts = [_text(value, f"texts[{number}]") for number, value in enumerate(content.get("texts", ()))]
    texts += [_text(content["text"], "text")] if "text" in content else []
    language = _text(content["language"], "language") if "language" in content else None
    return Question(images, texts, language, "images" in content or "texts" in content)


def _image(value: Any, where: str) -> bytes:
    if isinstance(value, dict) and set(value) == {"b64"}:
        value = value["b64"]
    if not isinstance(value, str):
        raise DataError("not a picture", where=where, expected="its file in base64", found=kind(value))
    return read_base64(value, where)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError("not a text", where=where, expected="a string", found=kind(value))
    return value


def rows_of(question: Question, signature: Signature, limits: Limits) -> tuple[list[Row], bool]:
    """A question's rows. One picture goes with every sentence, and one sentence with every picture.

    Args:
        question: The question.
        signature: What is asked.
        limits: How many rows there may be.

    Returns:
        The rows, and whether a list is to be answered.

    Raises:
        DataError: If something is missing, is not asked for, or does not go together.
    """
    images: list[Any] = question.images
    listed = question.listed
    if "image_bytes" in signature.inputs and signature.inputs["image_bytes"].shape.rank == 2 and images:
        # For a model that sees several pictures at a time these are one example.
        images, listed = [images], len(question.texts) > 1
    given = {"image_bytes": images, "text": _sources(question, signature)}
    for key, values in given.items():
        name = "image" if key == "image_bytes" else key
        if key in signature.inputs:
            check_count(len(values), name, limits)
        elif values:
            raise DataError(
                f"{signature.name} takes no {name}", where="body", expected=" and ".join(signature.inputs), found=name
            )
    counts = {key: len(values) for key, values in given.items() if key in signature.inputs}
    most = max(counts.values())
    if not set(counts.values()) <= {1, most}:
        raise DataError(
            "pictures and sentences do not go together", where="body", expected="as many of both, or one of either", found=counts
        )
    rows = [{key: given[key][number if count > 1 else 0] for key, count in counts.items()} for number in range(most)]
    return rows, listed


def _sources(question: Question, signature: Signature) -> list[bytes]:
    texts = question.texts
    if signature.name == "translate":
        if not question.language:
            raise DataError("no language", where="language", expected="a short name such as de", found="nothing")
        texts = [translation_source(text, question.language) for text in texts]
    elif question.language is not None:
        raise DataError(
            f"{signature.name} takes no language", where="body", expected=" and ".join(signature.inputs), found="language"
        )
    try:
        return [text.encode("utf-8") for text in texts]
    except UnicodeEncodeError:
        raise DataError("not a text", where="text", expected="characters of Unicode", found="half of a surrogate pair") from None
