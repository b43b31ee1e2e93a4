"""What drafts by early exit would win: how often a trained model's first layers choose the token that all layers choose.

    mmfusion train configs/quickstart.yaml fusion.depth=4 --run runs/deep
    python benchmarks/early_exit.py runs/deep --images 400

Greedy captions of validation images by the whole model; at each of their tokens, what the fusion's first n layers would have
chosen, through the same last normalisation and head. `value` is the share of equal tokens, a. A draft token costs c of a whole
one, here the share of the weights that it reads, since reading weights is what a token of few rows takes. With g tokens drafted
and checked in one pass, itself as dear as one token, ``(1 - a^(g+1)) / ((1 - a) (g c + 1))`` times as many tokens come a second
(Leviathan et al. 2022, arXiv:2211.17192, theorem 3.8); `details` have that for the best g up to 8. Below 1 drafts lose.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import emit, use_same_device
from number_formats import batch_of

MOST = 8


def main(arguments: list[str] | None = None) -> None:
    """Measures what the arguments ask for and prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder with fusion.style=cross, as mmfusion train makes it")
    parser.add_argument("--images", type=int, default=400, help="of the validation split")
    parser.add_argument("--batch-size", type=int, default=100)
    options = parser.parse_args(arguments)
    use_same_device(None, "cpu", None)
    measure(options)


def measure(options: argparse.Namespace) -> None:
    """Prints a line for each exit."""
    from mmfusion.data import open_source
    from mmfusion.training import load_run

    run = load_run(options.run)
    model, data = run.model, run.recipe.data
    if run.recipe.fusion is None or run.recipe.fusion.style != "cross" or "captioning" not in model.heads:
        raise SystemExit("error: early exit is measured of a captioning model with fusion.style=cross")
    source = open_source(data)
    split = data.validation_split
    images = batch_of(run, source, split, min(options.images, len(source.splits[split])))["image"]
    texts = np.concatenate([written(model, part) for part in parts(images, options.batch_size)])
    for exit_layer in range(1, len(model.fusion.blocks)):
        share = agreement(model, images, texts, exit_layer, options.batch_size)
        cost = weights_read(model, exit_layer) / weights_read(model, len(model.fusion.blocks))
        gains = {tokens: gain(share, cost, tokens) for tokens in range(1, MOST + 1)}
        best = max(gains, key=lambda tokens: gains[tokens])
        emit(
            f"early_exit.layer_{exit_layer}_of_{len(model.fusion.blocks)}",
            round(share, 4),
            "share of tokens chosen alike",
            details={
                "cost_of_a_draft": round(cost, 3),
                "tokens_drafted": best,
                "times_as_fast_at_best": round(gains[best], 3),
                "images": len(images),
                "data": source.name,
                "run": run.recipe.name,
            },
        )


def parts(values: np.ndarray, size: int) -> list[np.ndarray]:
    """Parts of so many rows."""
    return [values[start : start + size] for start in range(0, len(values), size)]


def written(model: Any, images: np.ndarray) -> np.ndarray:
    """Greedy captions, as long as they may be."""
    return np.asarray(model.caption(images, method="greedy").token_ids)


def agreement(model: Any, images: np.ndarray, texts: np.ndarray, exit_layer: int, batch_size: int) -> float:
    """The share of a text's tokens that the first layers choose too, of all texts."""
    head = model.head("captioning")
    starts = np.full((len(texts), 1), head.start_id, texts.dtype)
    given = np.concatenate([starts, texts[:, :-1]], axis=1)
    real = np.cumsum(texts == head.end_id, axis=1) - (texts == head.end_id) == 0
    blocks = model.fusion.blocks
    model.fusion.blocks = blocks[:exit_layer]
    depth, model.fusion.depth = model.fusion.depth, exit_layer
    try:
        chosen = []
        for pictures, tokens in zip(parts(images, batch_size), parts(given, batch_size), strict=True):
            patches, mask = model.encode_patches(pictures, None, training=False)
            logits = np.array(model.caption_logits(patches, tokens, training=False, patch_mask=mask))
            logits[..., [head.start_id, head.pad_id, *head.forbidden_ids]] = -np.inf
            chosen.append(logits.argmax(axis=-1))
    finally:
        model.fusion.blocks, model.fusion.depth = blocks, depth
    return float((np.concatenate(chosen) == texts)[real].mean())


def weights_read(model: Any, layers: int) -> int:
    """Numbers that a token's step reads with so many layers of the fusion, an image's keys and values being there already."""
    text, fusion, head = model.text_encoder, model.fusion, model.head("captioning")
    # One row of the positions, and, unless it is the output layer too, of the words.
    tables = [weight for weight in text.token_embedding.weights if weight.name == "position_embedding"]
    if head.vocabulary_size is not None:
        tables.append(text.token_embedding.embedding)
    looked_up = sum(table.shape.num_elements() - table.shape[-1] for table in tables)
    blocks = fusion.blocks[:layers]
    of_image = [layer for block in blocks for layer in (block.cross.key_projection, block.cross.value_projection)]
    unused = sum(layer.count_params() for layer in (*of_image, *fusion.blocks[layers:]))
    return text.count_params() - looked_up + fusion.count_params() - unused + head.count_params()


def gain(share: float, cost: float, tokens: int) -> float:
    """Times as many tokens a second."""
    kept = tokens + 1 if share == 1.0 else (1.0 - share ** (tokens + 1)) / (1.0 - share)
    return kept / (tokens * cost + 1.0)


if __name__ == "__main__":
    main()
