"""The formulas in a style's docstring say what its method returns."""

from __future__ import annotations

import re

import pytest

from mmfusion.fusion import STYLES
from mmfusion.fusion.cost import attention_cost

# Unlike letters, unlike numbers.
T, P, D, L, H, N, K, R, r = 7, 11, 16, 3, 4, 5, 2, 2, 3
CASES = {
    "late": ({}, {}),
    "cross": ({}, {}),
    "co": ({}, {}),
    "merged": ({}, {"N": T + P}),
    "bottleneck": ({"num_bottlenecks": K}, {"K": K}),
    "gated": ({}, {}),
    "qformer": ({"num_queries": N}, {"M": N + T, "C": 2}),
    "resampler": ({"num_latents": N, "resampler_depth": R}, {}),
    "recurrent": ({}, {}),
}
# Where its projection is said apart.
PROJECTED = ("merged", "bottleneck", "resampler")


def made(style, **options):
    # A projection of images of another width is said apart where there is one.
    image_dim = D if style in PROJECTED else 24
    return STYLES[style](dim=D, image_dim=image_dim, depth=L, num_heads=H, mlp_ratio=float(r), **CASES[style][0], **options)


def said(fusion, style, before):
    """What the formula before some words says."""
    words = r"\s+".join(before.split())
    formula = re.search(rf"``([^`]+)``\s+{words}", type(fusion).__doc__).group(1)
    formula = re.sub(r"(\d)([rK])", r"\1*\2", formula.replace("·", "*").replace("²", "**2"))
    names = {"T": T, "P": P, "D": D, "Di": fusion.image_dim, "L": L, "H": H, "N": N, "R": R, "r": r, **CASES[style][1]}
    return eval(formula, {"__builtins__": {}}, names)


def own_cost(fusion, style):
    """Without what a resampler's inner style says of itself."""
    cost = fusion.cost(T, P)
    inner = fusion.fusion.cost(T, N) if style == "resampler" else 0 * cost
    return cost.flops - inner.flops, cost.memory - inner.memory


@pytest.mark.parametrize("style", sorted(CASES))
def test_operations_and_memory(style):
    fusion = made(style)
    flops, memory = own_cost(fusion, style)
    assert said(fusion, style, "floating point operations") == flops
    kept = said(fusion, style, "numbers kept for the gradient")
    if style == "recurrent":  # which has the exact kernel alone, its weights in the one formula
        assert kept == memory
        multiplicative = made(style, attention="multiplicative")
        assert kept - said(fusion, style, "if multiplicative") == own_cost(multiplicative, style)[1]
        return
    assert kept + said(fusion, style, "more with the exact kernel") == memory
    assert kept == own_cost(made(style, kernel="chunked"), style)[1]


@pytest.mark.parametrize("style", PROJECTED)
def test_a_projection_of_the_image_costs_more(style):
    plain = made(style)
    other = STYLES[style](dim=D, image_dim=24, depth=L, num_heads=H, mlp_ratio=float(r), **CASES[style][0])
    more = other.cost(T, P) + -1 * plain.cost(T, P)
    assert (more.flops, more.memory) == (2 * P * D * 24, P * 24)


def test_a_window_goes_in_blocks_and_leading_tokens_beside_it():
    options = {"num_heads": 2, "kernel": "local", "window": 70}
    for leading in (0, 5):
        pairs = 5 * 70 * (3 * 70 + leading) + leading * 300  # ⌈300 / 70⌉ blocks
        cost = attention_cost(300, 300, 8, num_global_tokens=leading, **options)
        assert cost.flops == 2 * (4 * 300 * 8**2 + 2 * pairs * 8) and cost.memory == 5 * 300 * 8 + 2 * pairs
    # What fits into a block is seen whole, and so is a context.
    assert attention_cost(60, 60, 8, num_global_tokens=5, **options) == attention_cost(60, 60, 8, num_heads=2)
    crossed = {"context_dim": 8, "num_heads": 2}
    assert attention_cost(300, 200, 8, kernel="local", **crossed) == attention_cost(300, 200, 8, kernel="chunked", **crossed)


def test_variants():
    shared = STYLES["co"](dim=D, depth=L, num_heads=H, mlp_ratio=float(r), shared_cross=True)
    assert shared.cost(T, P).flops == 2 * L * (T + P) * (D**2 * (8 + 2 * r) + 2 * D * (T + P))
    assert shared.cost(T, P).memory == L * (T + P) * D * (12 + r) + L * H * (T + P) ** 2
    alone = STYLES["gated"](dim=D, image_dim=24, depth=L, num_heads=H, mlp_ratio=float(r), self_attention=False)
    assert alone.cost(T, P).memory == L * (T * D * (4 + r) + P * (24 + 2 * D)) + L * H * T * P
    between = STYLES["cross"](dim=D, image_dim=24, depth=L, num_heads=H, mlp_ratio=float(r), feed_forward_between=True)
    more = between.cost(T, P) + -1 * STYLES["cross"](dim=D, image_dim=24, depth=L, num_heads=H, mlp_ratio=float(r)).cost(T, P)
    assert (more.flops, more.memory) == (4 * L * r * T * D**2, L * T * D * (1 + r))
