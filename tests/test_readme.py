"""What the README shows in Python runs as it stands, where it needs no trained run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def test_snippets_run_and_give_what_their_comments_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    snippets = [
        code
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if "runs/" not in code and "saved_models/" not in code
    ]
    assert len(snippets) >= 2
    known: dict[str, Any] = {}
    for code in snippets:
        exec(code, known)
    assert known["attended"].shape == (2, 7, 64)
    assert known["fused"].text.shape == (2, 7, 64)
    assert known["fused"].scores.shape == (2, 2, 4, 7, 49)
    assert known["model"].output_shape == known["backbone"].output_shape
