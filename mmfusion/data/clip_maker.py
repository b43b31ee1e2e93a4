"""Makes small data sets of clips, and of several pictures a row, whose captions no single picture can tell."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfusion.data.builtin import builtin_pictures
from mmfusion.data.stateless import hash64
from mmfusion.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

TASKS = ("motion", "order")
MOTIONS = ("moves left", "moves right", "moves up", "moves down", "grows", "shrinks")
SIDE, FRAMES = 64, 8
CREDITS = (
    "The pictures are made of Twemoji, (c) Twitter, Inc and other contributors, licensed CC-BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/), changed in size, place and background.\n"
)
_THINGS = (
    "🍎🚗🐶🌟🌙🔑🎈🐟🦋🌵🍌🎩🚲⚓🏠🍄🎸🐙🐘🦊🐸🐧🐝🌻🍓🍇🍋🍉🥕🌽🍕🎁⏰📷🚀⛵🎲👻🔔🧲"  # each with a name and a look of its own
)
_STEPS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}


def make_clips(folder: str | Path, *, task: str = "motion", copies: int = 5, things: int = len(_THINGS), seed: int = 0) -> Path:
    """Writes a data set of Twemoji icons: a ``captions.jsonl`` and the pictures that it names.

    - ``"motion"``: animated GIFs of 8 frames, "dog face moves left", in six motions (`MOTIONS`). What leaves at one edge comes in
      at the other. The first frame is drawn alike for all motions, so that it says nothing of them; and clips to the left are
      clips to the right played backwards, so that no set of frames without their order does.
    - ``"order"``: two pictures a row, "first dog face, then key"; the validation split has every pair in both orders.

    Args:
        folder: Where to; it must not exist, or be empty.
        task: ``"motion"`` or ``"order"``. Default ``"motion"``.
        copies: Training clips of each thing and motion; of ``"order"``, six times as many rows of each thing. Default 5.
        things: How many different things. Default all, 40.
        seed: Seed of places, sizes, speeds, colours and pairs. Default 0.

    Returns:
        The ``captions.jsonl``.

    Raises:
        ConfigError: If the task is unknown, or a number impossible.
        DataError: If the folder is not empty or cannot be written, or the packages of the built-in set are missing.

    Example:
        >>> import pathlib, tempfile
        >>> from mmfusion.data import make_clips, read_jsonl
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> source = read_jsonl(make_clips(folder / "clips", copies=1, things=2))
        >>> len(source.splits["train"]), len(source.splits["val"]), source.splits["val"][0].captions
        (12, 12, ('red apple moves left',))
    """
    if task not in TASKS:
        raise ConfigError("unknown task", expected=" or ".join(TASKS), found=repr(task))
    if copies < 1 or not 2 <= things <= len(_THINGS):
        expected = f"copies at least 1, things from 2 to {len(_THINGS)}"
        raise ConfigError("impossible data set", expected=expected, found=f"{copies} and {things}")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError("there is something already", where=folder, fix="name another folder")
    icons = _icons(things)
    write = {"motion": _write_motion, "order": _write_order}[task]
    try:
        (folder / "images").mkdir(parents=True)
        (folder / "credits.txt").write_text(CREDITS, encoding="utf-8")
        path = folder / "captions.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for row in write(folder, icons, copies, seed):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError("cannot write the clips", where=folder, found=error.strerror or error) from error
    return path


def _icons(things: int) -> list[tuple[str, Image.Image]]:
    from PIL import Image

    known = builtin_pictures()
    return [(known[thing][0], Image.open(known[thing][1]).convert("RGBA")) for thing in _THINGS[:things]]


def _write_motion(folder: Path, icons: list[tuple[str, Any]], copies: int, seed: int) -> Iterator[dict[str, object]]:
    for number, (name, icon) in enumerate(icons):
        for kind, motion in enumerate(MOTIONS):
            for copy in range(copies + 1):
                draw = _numbers(seed, number, kind, copy)
                first, *others = _moving(icon, motion, draw)
                file = f"images/{name.replace(' ', '-')}-{motion.replace(' ', '-')}-{copy}.gif"
                first.save(folder / file, "GIF", save_all=True, append_images=others, duration=120, loop=0, disposal=1)
                yield {"image": file, "captions": [f"{name} {motion}"], "split": "train" if copy else "val"}


def _moving(icon: Image.Image, motion: str, draw: Callable[[int, int], int]) -> list[Image.Image]:
    """Frames of a clip. The first depends on the drawn numbers alone, never on the motion."""
    side, left, top, colour = draw(24, 32), draw(0, SIDE - 1), draw(0, SIDE - 1), [draw(170, 250) for _ in range(3)]
    speed, growth = draw(4, 6), 1.5 ** (1 / (FRAMES - 1))
    frames = []
    for frame in range(FRAMES):
        across, down = (step * speed * frame for step in _STEPS.get(motion, (0, 0)))
        scale = growth ** {"grows": frame, "shrinks": -frame}.get(motion, 0)
        frames.append(_placed(icon, round(side * scale), left + across, top + down, colour))
    return frames


def _write_order(folder: Path, icons: list[tuple[str, Any]], copies: int, seed: int) -> Iterator[dict[str, object]]:
    looks, count = 4, len(icons)
    for number, (name, icon) in enumerate(icons):
        for look in range(looks):
            draw = _numbers(seed, number, look)
            side, place, colour = draw(32, 52), draw(0, SIDE - 1), [draw(170, 250) for _ in range(3)]
            _placed(icon, side, place, draw(0, SIDE - 1), colour).save(folder / _file_of(name, look))
    pairs = [(one, two) for one in range(count) for two in range(count) if one != two]
    order = sorted(range(len(pairs)), key=lambda at: int(hash64(seed, *sorted(pairs[at]))))
    # Both orders of a pair are neighbours, and stay in one split.
    held_out = 2 * max(min(count * (count - 1) // 4, 3 * count), 1) if count > 2 else 0
    for place, at in enumerate(order[: held_out + len(MOTIONS) * copies * count]):
        names = [icons[number][0] for number in pairs[at]]
        draw = _numbers(seed, 7, *pairs[at])
        yield {
            "images": [_file_of(name, draw(0, looks - 1)) for name in names],
            "captions": [f"first {names[0]}, then {names[1]}"],
            "split": "val" if place < held_out else "train",
        }


def _file_of(name: str, look: int) -> str:
    return f"images/{name.replace(' ', '-')}-{look}.png"


def _placed(icon: Image.Image, side: int, left: int, top: int, colour: list[int]) -> Image.Image:
    """The icon on a plain ground; what leaves at one edge comes in at the other."""
    from PIL import Image

    ground = Image.new("RGB", (SIDE, SIDE), tuple(colour))
    small, corner = icon.resize((side, side), Image.Resampling.LANCZOS), (SIDE - side) // 2
    ground.paste(small, (corner, corner), small)
    # The middle of the icon comes to (left, top), so that it grows around it.
    return Image.fromarray(np.roll(np.asarray(ground), (top - SIDE // 2, left - SIDE // 2), axis=(0, 1)))


def _numbers(*keys: int) -> Callable[[int, int], int]:
    """Draws whole numbers from low to high, one after the other, as a pure function of the keys."""
    count = iter(range(1 << 30))
    return lambda low, high: low + int(hash64(*keys, next(count)) % np.uint64(high - low + 1))
