"""What the README shows in Python runs as it stands, where it needs no trained run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from mmfusion.config import FUSION_STYLES

ROOT = Path(__file__).resolve().parents[1]


def test_snippets_run_and_give_what_their_comments_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    snippets = [
        code
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if "runs/" not in code and "saved_models/" not in code
    ]
    assert len(snippets) >= 4
    known: dict[str, Any] = {}
    for code in snippets:
        exec(code, known)
    assert known["attended"].shape == (2, 7, 64)
    assert known["fused"].text.shape == (2, 7, 64)
    assert known["fused"].scores.shape == (2, 2, 4, 7, 49)
    words = np.concatenate([np.asarray(word) for word in known["words"]], axis=1)
    np.testing.assert_allclose(words, np.asarray(known["whole"]), atol=1e-5)
    assert set(known["costs"]) == set(FUSION_STYLES) and min(known["costs"], key=known["costs"].get) == "late"
    assert known["albef"].heads == ("contrastive", "matching", "masked_language") and known["albef"].fusion.depth == 3
    assert known["similarity"].shape == (2, 2) and known["logits"].shape == (2,)
    assert known["model"].output_shape == known["backbone"].output_shape
