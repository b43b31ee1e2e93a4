"""The room opens without TensorFlow, Keras, matplotlib and rich."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["mmfusion.evaluation", "mmfusion.explain"])
def test_imports_are_light(module: str) -> None:
    heavy = ("tensorflow", "keras", "matplotlib", "rich")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
