"""Runs a benchmark script as a person does: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def run_script(script: str, *arguments: str, environment: Mapping[str, str] = os.environ) -> tuple[list[dict[str, Any]], str]:
    """The JSON lines that it prints, and what it says beside them."""
    quiet = {**environment, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    result = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return [json.loads(line) for line in result.stdout.splitlines()], result.stderr
