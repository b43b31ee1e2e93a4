"""How large a picture is, from the first bytes of its file: what is too large is refused before it is decoded."""

from __future__ import annotations

from typing import NamedTuple

from mmfusion.errors import DataError

_FRAMES_OF_JPEG = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})


class ImageHeader(NamedTuple):
    """What a picture's file says of itself.

    Attributes:
        format: ``"JPEG"``, ``"PNG"``, ``"WebP"``, ``"GIF"`` or ``"BMP"``.
        width: Pixels a row.
        height: Rows.
        pixels: Pixels that decoding gives, all frames together.
    """

    format: str
    width: int
    height: int
    pixels: int


def read_header(content: bytes) -> ImageHeader:
    r"""Reads a picture's size without decoding it.

    Args:
        content: The file's bytes.

    Returns:
        The `ImageHeader`. That the rest of the file can be decoded it does not say.

    Raises:
        DataError: If these are not the first bytes of a picture.

    Example:
        >>> read_header(b"BM" + bytes(16) + (640).to_bytes(4, "little") + (480).to_bytes(4, "little"))
        ImageHeader(format='BMP', width=640, height=480, pixels=307200)

    Source: ITU T.81 (JPEG), W3C PNG, RFC 9649 (WebP), GIF89a.
    """
    for name, signature, read in _FORMATS:
        if content.startswith(signature):
            sizes = read(content)
            if sizes:
                width, height = sizes[0]
                return ImageHeader(name, width, height, sum(width * height for width, height in sizes))
    raise not_readable(content)


def not_readable(content: bytes) -> DataError:
    """The error of a file that is no picture, or a damaged one.

    Args:
        content: The file's bytes.
    """
    return DataError(
        "not a readable image",
        where="image_bytes",
        expected="JPEG, PNG, WebP, GIF or BMP",
        found=f"{len(content)} bytes starting with {content[:8]!r}",
    )


def _number(content: bytes, at: int, size: int, order: str = "little") -> int:
    return int.from_bytes(content[at : at + size], "big" if order == "big" else "little")


def _png(content: bytes) -> list[tuple[int, int]]:
    if content[12:16] != b"IHDR" or len(content) < 24:
        return []
    return [(_number(content, 16, 4, "big"), _number(content, 20, 4, "big"))]


def _jpeg(content: bytes) -> list[tuple[int, int]]:
    at = 2
    while at + 9 < len(content):
        if content[at] != 0xFF:
            # A decoder skips what stands between two segments.
            at = content.find(b"\xff", at)
            if at < 0:
                return []
            continue
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _STANDALONE or marker == 0:
            at += 2
        elif marker in _FRAMES_OF_JPEG:
            return [(_number(content, at + 7, 2, "big"), _number(content, at + 5, 2, "big"))]
        elif marker in (0xD9, 0xDA):
            return []
        else:
            at += 2 + max(_number(content, at + 2, 2, "big"), 2)
    return []


def _bmp(content: bytes) -> list[tuple[int, int]]:
    if len(content) < 26:
        return []
    height = int.from_bytes(content[22:26], "little", signed=True)
    return [(_number(content, 18, 4), abs(height))]


def _gif(content: bytes) -> list[tuple[int, int]]:
    if len(content) < 13:
        return []
    canvas = _number(content, 6, 2), _number(content, 8, 2)
    sizes = []
    at = 13 + _palette(content[10])
    while at < len(content):
        if content[at] == 0x2C and at + 10 <= len(content):
            frame = _number(content, at + 5, 2), _number(content, at + 7, 2)
            # A decoder lays each frame over a canvas of its own.
            sizes.append(max(canvas, frame, key=lambda size: size[0] * size[1]))
            at = _after_blocks(content, at + 11 + _palette(content[at + 9]))
        elif content[at] == 0x21:
            at = _after_blocks(content, at + 2)
        else:
            break
    return sizes or [canvas]


def _palette(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(content: bytes, at: int) -> int:
    while at < len(content) and content[at]:
        at += 1 + content[at]
    return at + 1


def _webp(content: bytes) -> list[tuple[int, int]]:
    if content[8:12] != b"WEBP":
        return []
    sizes = []
    at = 12
    while at + 8 <= len(content):
        name, size = content[at : at + 4], _number(content, at + 4, 4)
        if name == b"VP8X":
            sizes.append((1 + _number(content, at + 12, 3), 1 + _number(content, at + 15, 3)))
        elif name == b"VP8 ":
            sizes.append((_number(content, at + 14, 2) & 0x3FFF, _number(content, at + 16, 2) & 0x3FFF))
        elif name == b"VP8L":
            bits = _number(content, at + 9, 4)
            sizes.append((1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)))
        # What a frame of an animation holds is chunks again, behind its own 16 bytes.
        at += 8 + (16 if name == b"ANMF" else size + size % 2)
    # One frame is decoded; which of the sizes is true the decoder finds out.
    return [max(sizes, key=lambda size: size[0] * size[1])] if sizes else []


_FORMATS = (
    ("JPEG", b"\xff\xd8", _jpeg),
    ("PNG", b"\x89PNG\r\n\x1a\n", _png),
    ("GIF", b"GIF8", _gif),
    ("WebP", b"RIFF", _webp),
    ("BMP", b"BM", _bmp),
)
