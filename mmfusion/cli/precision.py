"""The option ``--precision``: in which number format a trained model computes."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer


class Precision(str, Enum):
    """The words of `mmfusion.models.NUMBER_FORMATS`, known before TensorFlow is."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"


PrecisionOption = Annotated[
    Precision | None,
    typer.Option(
        "--precision", help="Of a run: the number format to compute in. Default: as it was trained.", show_default=False
    ),
]
"""The option of all commands that ask a trained model."""


def word_of(precision: Precision | None) -> str | None:
    """What the library calls it."""
    # Through the class: of some versions of typer commands get the word itself.
    return None if precision is None else Precision(precision).value
