"""The formula in a style's docstring says what its method returns."""

from __future__ import annotations

import re

import pytest

from mmfusion.fusion import STYLES

# Unlike letters, unlike numbers.
T, P, D, L, H, N, R, r = 7, 11, 16, 3, 4, 5, 2, 3
CASES = {
    "late": ({}, {}),
    "cross": ({}, {}),
    "merged": ({}, {"N": T + P}),
    "gated": ({}, {}),
    "qformer": ({"num_queries": N}, {"M": N + T, "C": 2}),
    "resampler": ({"num_latents": N, "resampler_depth": R}, {}),
    "recurrent": ({}, {}),
}


@pytest.mark.parametrize("style", sorted(CASES))
def test_operations(style):
    options, letters = CASES[style]
    # A projection of images of another width is said apart where there is one.
    image_dim = D if style in ("merged", "resampler") else 24
    fusion = STYLES[style](dim=D, image_dim=image_dim, depth=L, num_heads=H, mlp_ratio=float(r), **options)
    formula = re.search(r"``([^`]+)``\s+floating\s+point\s+operations", type(fusion).__doc__).group(1)
    formula = re.sub(r"(\d)r", r"\1*r", formula.replace("·", "*").replace("²", "**2"))
    names = {"T": T, "P": P, "D": D, "Di": image_dim, "L": L, "H": H, "N": N, "R": R, "r": r, **letters}
    said = eval(formula, {"__builtins__": {}}, names)
    inner = fusion.fusion.cost(T, N).flops if style == "resampler" else 0
    assert said == fusion.cost(T, P).flops - inner
