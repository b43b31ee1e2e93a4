"""A tiny run, trained once through the command line, and its export; and the command line itself, in and out of process."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from smoke.command_line import QUICKSTART, TINY, Answer, in_process_of_its_own


@pytest.fixture
def mmfusion(capfd, monkeypatch) -> Callable[..., Answer]:
    """Runs ``mmfusion …`` in this process, where TensorFlow is imported already."""
    from mmfusion.cli.main import run

    monkeypatch.setenv("COLUMNS", "200")

    def ask(*arguments: object) -> Answer:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Answer(int(exit.value.code or 0), out, err)

    return ask


class Trained(NamedTuple):
    """A run and what its training said."""

    folder: Path
    answer: Answer


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    """``mmfusion train configs/quickstart.yaml --quick`` on the built-in pictures, with a tiny model."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    answer = in_process_of_its_own("train", QUICKSTART, *TINY, "--quick", "--run", folder)
    assert answer.status == 0, answer.err
    return Trained(folder, answer)


@pytest.fixture(scope="session")
def export_folder(trained, tmp_path_factory) -> Path:
    """The run's export."""
    folder = tmp_path_factory.mktemp("smoke") / "export"
    from mmfusion.cli.main import run

    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as exit:
        run(["export", str(trained.folder), "--output", str(folder)])
    assert not exit.value.code, out.getvalue()
    assert str(folder) in out.getvalue()
    return folder


class Pictures(NamedTuple):
    """Pictures, good and bad, in one folder."""

    folder: Path
    good: dict[str, Path]
    bad: dict[str, Path]


def png_of_16_bits(height: int = 12, width: int = 10) -> bytes:
    """A colour PNG of 16 bits a channel, which Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    ramp = np.linspace(0, 65535, height * width * 3).astype(">u2").reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in ramp)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Pictures:
    """A folder with an ordinary, a CMYK and a 16-bit picture, a truncated JPEG and a text file named .jpg."""
    folder = tmp_path_factory.mktemp("pictures")
    rows, columns = np.mgrid[0:30, 0:40]
    image = Image.fromarray(np.stack([rows * 8, columns * 6, rows + columns], axis=-1).astype(np.uint8))
    good = {"plain": folder / "plain.jpg", "cmyk": folder / "cmyk.jpg", "16 bits": folder / "sixteen.png"}
    image.save(good["plain"], quality=95)
    image.convert("CMYK").save(good["cmyk"], quality=95)
    good["16 bits"].write_bytes(png_of_16_bits())
    whole = good["plain"].read_bytes()
    bad = {"truncated": folder / "truncated.jpg", "text": folder / "text.jpg"}
    bad["truncated"].write_bytes(whole[: len(whole) // 2])
    bad["text"].write_text("a picture, believe me")
    return Pictures(folder, good, bad)


@pytest.fixture
def make_training_set(tmp_path, pictures) -> Callable[..., Path]:
    """Writes ``captions.jsonl`` with `count` good rows and the given bad ones; the rows of split ``val`` are good."""

    def make(bad_rows: list[dict[str, object]], *, count: int = 40) -> Path:
        folder = tmp_path / "data"
        folder.mkdir()
        rng = np.random.default_rng(0)
        rows = []
        for number in range(count + 8):
            file = folder / f"{number:03d}.png"
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file)
            split = "train" if number < count else "val"
            rows.append({"image": file.name, "captions": [f"picture number {number} of many"], "split": split})
        rows[3:3] = bad_rows
        path = folder / "captions.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return make


@pytest.fixture
def full_disk(tmp_path) -> Iterator[Path]:
    """A folder on a file system of two megabytes, or skip where none can be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
