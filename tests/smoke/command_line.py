"""The command ``mmfusion`` as a user runs it, and a model that trains in seconds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import mmfusion

REPOSITORY = Path(__file__).resolve().parents[2]
QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"
TINY_MODEL = (
    "data.image_size=24",
    "model.image_encoder.dim=16",
    "model.image_encoder.depth=1",
    "model.image_encoder.num_heads=2",
    "model.text_encoder.dim=16",
    "model.text_encoder.depth=1",
    "model.text_encoder.num_heads=2",
    "model.embedding_dim=16",
    "fusion.num_heads=2",
    "text.vocabulary_size=300",
    "text.max_tokens=8",
    "train.tensorboard=false",
)
TINY = (
    *TINY_MODEL,
    "data.limit=64",
    "train.batch_size=16",
    "train.validation_images=16",
    "evaluation.caption_images=4",
    "evaluation.rerank_top_k=2",
    "decoding.beam_size=2",
)


class Answer(NamedTuple):
    """What a command said."""

    status: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        """Lines on standard error, without what the tests' own log level lets TensorFlow's C++ say."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        return [line for line in lines if not re.match(r"[IWEF]\d{4} \d\d:|WARNING: All log messages", line)]


def user_environment(**changes: str) -> dict[str, str]:
    """The environment of a user: without what the tests set for themselves."""
    own = ("TF_CPP_MIN_LOG_LEVEL", "KERAS_BACKEND", "MMFUSION_DEBUG")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    path = os.pathsep.join(filter(None, (str(Path(mmfusion.__file__).parents[1]), environment.get("PYTHONPATH"))))
    return environment | {"PYTHONPATH": path, "COLUMNS": "200"} | changes


def command(*arguments: object) -> list[str]:
    """``mmfusion`` with the running Python."""
    return [sys.executable, "-m", "mmfusion", *map(str, arguments)]


def in_process_of_its_own(*arguments: object, cwd: Path | None = None, timeout: float = 500) -> Answer:
    """Runs ``mmfusion …`` as a user does."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, cwd=cwd, env=user_environment(), timeout=timeout, check=False
    )
    return Answer(done.returncode, done.stdout, done.stderr)
