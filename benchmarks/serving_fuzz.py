"""Requests that nobody should send: random, spoilt, too large, half right. For `serving.py --fuzz`, and for the tests.

What a service must do with each: answer, with JSON, with a status below 500 (503 where too many wait), and live on.
"""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Sent(NamedTuple):
    """A request.

    Attributes:
        kind: What was done to it.
        method: Of HTTP.
        path: Its address.
        headers: Beside the body's length.
        body: What it holds.
    """

    kind: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def png_header(width: int, height: int) -> bytes:
    """A PNG that says to be so large, and ends there."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))


def spoilt_requests(seed: int, name: str, pictures: list[bytes]) -> Iterator[Sent]:
    """Requests without end, the same for the same seed.

    Args:
        seed: Where chance starts.
        name: The model's name.
        pictures: Good files, to spoil.
    """
    chance = random.Random(seed)
    while True:
        kind = chance.choice(list(_KINDS))
        yield _KINDS[kind](kind, chance, name, chance.choice(pictures))


def is_fine(sent: Sent, status: int, body: bytes) -> str | None:
    """What is wrong with an answer to a spoilt request; None where nothing is.

    Args:
        sent: The request.
        status: The answer's status; 0 where there was none.
        body: Its body.
    """
    if not (200 <= status < 500 or status == 503):
        return f"{sent.kind}: status {status}: {body[:200]!r}"
    try:
        content = json.loads(body)
    except ValueError:
        return f"{sent.kind}: no JSON: {body[:200]!r}"
    if status >= 400 and not (isinstance(content, dict) and isinstance(content.get("error"), str) and content["error"]):
        return f"{sent.kind}: no error in words: {body[:200]!r}"
    return None


def _predict(kind: str, name: str, content: Any) -> Sent:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Sent(kind, "POST", f"/v1/models/{name}:predict", {"content-type": "application/json"}, body)


def _instance(picture: bytes) -> dict[str, Any]:
    return {"image_bytes": {"b64": base64.b64encode(picture).decode()}}


def _flipped(kind: str, chance: random.Random, name: str, picture: bytes) -> Sent:
    spoilt = bytearray(picture)
    for _ in range(chance.choice((1, 3, 30))):
        spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
    return _predict(kind, name, {"signature_name": chance.choice(_OF_PICTURES), "instances": [_instance(bytes(spoilt))]})


def _cut(kind: str, chance: random.Random, name: str, picture: bytes) -> Sent:
    cut = picture[: chance.randrange(len(picture))]
    return _predict(kind, name, {"signature_name": chance.choice(_OF_PICTURES), "instances": [_instance(cut)]})


def _one_bad_of_many(kind: str, chance: random.Random, name: str, picture: bytes) -> Sent:
    rows = [_instance(picture) for _ in range(chance.randrange(2, 6))]
    rows[chance.randrange(len(rows))] = _instance(picture[: len(picture) // 2])
    return _predict(kind, name, {"signature_name": "encode_image", "instances": rows})


def _good(kind: str, chance: random.Random, name: str, picture: bytes) -> Sent:
    return _predict(kind, name, {"signature_name": "encode_image", "instances": [_instance(picture)]})


def _noise(kind: str, chance: random.Random, name: str, picture: bytes) -> Sent:
    return _predict(kind, name, chance.randbytes(chance.randrange(2000)))


def _noise_as_picture(kind: str, chance: random.Random, name: str, picture: bytes) -> Sent:
    start = chance.choice((b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 ", b"BM"))
    route = chance.choice(("caption", "encode_image", "match?text=dog", "attend?text=dog"))
    return Sent(kind, "POST", f"/{route}", {"content-type": "image/jpeg"}, start + chance.randbytes(chance.randrange(3000)))


def _spoilt_json(kind: str, chance: random.Random, name: str, picture: bytes) -> Sent:
    whole = bytearray(json.dumps({"signature_name": "encode_text", "instances": [{"text": "a dog"}, {"text": "é"}]}).encode())
    for _ in range(chance.choice((1, 2, 8))):
        place = chance.randrange(len(whole))
        if chance.random() < 0.5:
            whole[place] = chance.randrange(256)
        else:
            del whole[place]
    return _predict(kind, name, bytes(whole))


def _random_values(kind: str, chance: random.Random, name: str, picture: bytes) -> Sent:
    signature = chance.choice((*_SIGNATURES, "serving_default", "nothing", "", 7, None))
    key = chance.choice(("instances", "inputs"))
    return _predict(kind, name, {"signature_name": signature, key: _value(chance, 3)})


def _value(chance: random.Random, depth: int) -> Any:
    simple: tuple[Any, ...] = (
        None, True, 0, -1, 1.5, 2**40, 10**30, "", "a dog", "\0", "\ud800", {"b64": "!"}, {"b64": "AAAA"}, float("nan"), [], {},
    )  # fmt: skip
    if depth == 0 or chance.random() < 0.4:
        return chance.choice(simple)
    if chance.random() < 0.5:
        return [_value(chance, depth - 1) for _ in range(chance.randrange(4))]
    keys = ("image_bytes", "text", "token_ids", "token_mask", "b64", "other")
    return {chance.choice(keys): _value(chance, depth - 1) for _ in range(chance.randrange(4))}


def _tokens(kind: str, chance: random.Random, name: str, picture: bytes) -> Sent:
    length = chance.choice((0, 1, 5, 9, 10, 500))
    ids = [chance.choice((0, 1, 2, 5, -3, 10**6, 2**31)) for _ in range(length)]
    mask = [chance.random() < 0.7 for _ in range(length + chance.choice((0, 0, 0, 1)))]
    return _predict(kind, name, {"signature_name": "encode_text_ids", "instances": [{"token_ids": ids, "token_mask": mask}]})


def _texts(kind: str, chance: random.Random, name: str, picture: bytes) -> Sent:
    letters = [chr(chance.choice((0, 10, 65, 0x301, 0x4E2D, 0x1F600, chance.randrange(1, 0xD800)))) for _ in range(60)]
    return _predict(kind, name, {"signature_name": "encode_text", "instances": ["".join(letters) * chance.choice((1, 50, 400))]})


def _deep(kind: str, chance: random.Random, name: str, picture: bytes) -> Sent:
    depth = chance.choice((50, 5000, 200_000))
    return _predict(kind, name, b'{"instances": ' + b"[" * depth + b"]" * depth + b"}")


def _huge_picture(kind: str, chance: random.Random, name: str, picture: bytes) -> Sent:
    sides = chance.choice(((20_000, 10_000), (2**31 - 1, 2**31 - 1), (0, 0), (1, 60_000_000)))
    return Sent(kind, "POST", "/encode_image", {"content-type": "image/png"}, png_header(*sides) + chance.randbytes(100))


def _bad_form(kind: str, chance: random.Random, name: str, picture: bytes) -> Sent:
    boundary = chance.choice(("b", "", "x" * 200))
    part = (
        b'--b\r\ncontent-disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
        + picture[: chance.randrange(len(picture))]
    )
    end = chance.choice((b"", b"\r\n--b--\r\n", b"\r\n--b"))
    return Sent(kind, "POST", "/caption", {"content-type": f"multipart/form-data; boundary={boundary}"}, part + end)


def _address(kind: str, chance: random.Random, name: str, picture: bytes) -> Sent:
    path = chance.choice(
        ("/v1/models/other:predict", f"/v1/models/{name}:classify", f"/v1/models/{name}/versions/9:predict", "/%00", "/caption/x",
         f"/v1/models/{name}/versions/1:predict", "/v1/models/" + "a" * 3000, f"/v1/models/{name}/labels/x")
    )  # fmt: skip
    return Sent(kind, chance.choice(("POST", "GET", "DELETE", "PUT")), path, {}, b"{}")


_SIGNATURES = ("encode_image", "encode_text", "encode_text_ids", "match", "caption", "attend")
_OF_PICTURES = ("encode_image", "caption")
_KINDS: dict[str, Callable[[str, random.Random, str, bytes], Sent]] = {
    "flipped bytes": _flipped,
    "cut short": _cut,
    "one bad of many": _one_bad_of_many,
    "good": _good,
    "noise": _noise,
    "noise as a picture": _noise_as_picture,
    "spoilt JSON": _spoilt_json,
    "random values": _random_values,
    "tokens": _tokens,
    "texts": _texts,
    "deeply nested": _deep,
    "huge picture": _huge_picture,
    "bad form": _bad_form,
    "addresses": _address,
}
