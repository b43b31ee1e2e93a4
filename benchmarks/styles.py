"""Every fusion style, trained by the same recipe from the command line: one table.

    python benchmarks/styles.py
    python benchmarks/styles.py --styles cross merged --set train.epochs=4 --folder runs/styles-short
    python benchmarks/styles.py --quick --docs none

Each style is trained by ``mmfusion train RECIPE fusion.style=STYLE`` and measured by ``mmfusion evaluate``; a run that is there
already is used again if the same settings made it, and refused if others did. Steps are timed afterwards, all styles in turns in
one process. It prints a line for each style and writes the table to ``docs/styles.md``.

Every style has the same encoders, widths, fusion depth, data, steps and seed, and its own defaults for what is its own. Recall
before reranking comes from the dual encoder, which no fusion takes part in (the joint training moves it a little); what a style
is worth shows in recall after reranking, in the matching accuracy and in the captions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import (
    REPOSITORY,
    Run,
    add_threads_argument,
    build_ours,
    core_count,
    device_description,
    emit,
    interleaved,
    random_batch,
    read_recipe,
    refuse_other_settings,
    timed,
    use_same_device,
)

RECIPE = REPOSITORY / "configs" / "styles.yaml"
DOCS = REPOSITORY / "docs" / "styles.md"
HEADER = (
    "| style | parameters (fusion) | fusion, MFLOP a pair | step, ms | I→T R@1 / R@10 | reranked | T→I R@1 / R@10 | reranked "
    "| matching accuracy | CIDEr-D | BLEU-4 |"
)


def main(arguments: list[str] | None = None) -> None:
    """Trains, measures, prints the lines and writes the table."""
    from mmfusion.config import load_recipe

    options = read_arguments(arguments)
    folders = {style: options.folder / style for style in options.styles}
    done = [style for style, folder in folders.items() if (folder / "evaluation" / "metrics.json").is_file()]
    for style in done:
        refuse_other_settings(folders[style], load_recipe(options.recipe, overrides_of(style, options), quick=options.quick))
        print(f"{style}: {folders[style]} is there already", file=sys.stderr)
    for style in (style for style in options.styles if style not in done):
        train_and_evaluate(style, folders[style], options)
    use_same_device(None, options.device, options.threads)
    rows = [read_figures(style, folder) for style, folder in folders.items()]
    seconds = time_steps(folders, options)
    for row in rows:
        row["step_seconds"] = seconds[row["style"]]
        emit(
            f"styles.{row['style']}.training_step",
            row["batch_size"] / row["step_seconds"],
            "samples/s",
            details={**row, "threads": options.threads or core_count(), "no_peer": "the styles are each other's peers"},
        )
    if options.docs != "none":
        write_table(rows, Path(options.docs), options)


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    from mmfusion.config import FUSION_STYLES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="the recipe that all styles share")
    parser.add_argument("--styles", nargs="+", default=list(FUSION_STYLES), choices=FUSION_STYLES)
    parser.add_argument("--folder", type=Path, help="where the runs go; default runs/styles, or runs/styles-quick")
    parser.add_argument("--docs", default=str(DOCS), help="the file for the table; none writes none")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--quick", action="store_true", help="the recipe's quick variant: says that it runs, nothing else")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each style")
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    add_threads_argument(parser)
    options = parser.parse_args(arguments)
    options.folder = options.folder or REPOSITORY / "runs" / ("styles-quick" if options.quick else "styles")
    return options


def overrides_of(style: str, options: argparse.Namespace) -> list[str]:
    """What is changed in the recipe for a style."""
    return [*options.overrides, f"fusion.style={style}"]


def train_and_evaluate(style: str, folder: Path, options: argparse.Namespace) -> None:
    """What a person would type."""
    command = [sys.executable, "-m", "mmfusion"]
    quick = ["--quick"] if options.quick else []
    for step in (
        ["train", str(options.recipe), *overrides_of(style, options), *quick, "--run", str(folder)],
        ["evaluate", str(folder)],
    ):
        print(f"== mmfusion {' '.join(step)}", file=sys.stderr, flush=True)
        subprocess.run([*command, *step], check=True, stdout=sys.stderr)


def read_figures(style: str, folder: Path) -> dict[str, Any]:
    """Parameters, cost and scores of a trained style."""
    from mmfusion.training import load_run

    run = load_run(folder)
    recipe, model = run.recipe, run.model
    report = json.loads((folder / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    validation = [json.loads(line) for line in run.folder.train_log.read_text(encoding="utf-8").splitlines()]
    accuracies = [row["val_matching_accuracy"] for row in validation if row.get("val_matching_accuracy") is not None]
    rows, columns = model.image_encoder.grid
    cost = model.fusion.cost(recipe.text.max_tokens, rows * columns)
    return {
        "style": style,
        "recipe": recipe.name,
        "batch_size": recipe.train.batch_size,
        "steps": (len(accuracies) and validation[-1].get("step")) or None,
        "image_size": list(recipe.data.size),
        "image_tokens": rows * columns,
        "text_tokens": recipe.text.max_tokens,
        "parameters": model.count_params(),
        "fusion_parameters": model.fusion.count_params(),
        "fusion_flops": cost.flops,
        "fusion_memory": cost.memory,
        "matching_accuracy": accuracies[-1] if accuracies else None,
        "metrics": report["metrics"],
        "meta": report["meta"],
    }


def time_steps(folders: dict[str, Path], options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a training step of each style, all in turns on the same batch."""
    runs: dict[str, Run] = {}
    for style, folder in folders.items():
        recipe = read_recipe(folder / "recipe.yaml")
        runs[style] = training_steps(recipe, options.steps)
    timings = interleaved(runs, rounds=options.rounds, warmup=2)
    return {style: timing.wall / options.steps for style, timing in timings.items()}


def training_steps(recipe: Any, steps: int) -> Run:
    """The train function of `mmfusion.training.Trainer`, as `mmfusion train` runs it, on one batch again and again."""
    import keras
    import tensorflow as tf

    from mmfusion.training import Trainer, build_optimizer
    from mmfusion.training.objectives import build_objectives

    keras.utils.set_random_seed(recipe.seed)
    model = build_ours(recipe, recipe.train.precision)
    trainer = Trainer(model, build_objectives(recipe), clip_norm=recipe.train.clip_norm)
    trainer.compile(optimizer=build_optimizer(model.trainable_variables, steps=10_000), jit_compile=recipe.train.jit_compile)
    trainer.make_train_function()
    batch = random_batch(recipe, recipe.train.batch_size, recipe.seed)
    iterator = itertools.repeat({name: tf.constant(value) for name, value in batch.items()})

    def work() -> float:
        for _ in range(steps):
            figures = trainer.train_function(iterator)
        # Reading a figure waits for the device.
        return float(figures["loss"])

    return timed(work)


def write_table(rows: list[dict[str, Any]], path: Path, options: argparse.Namespace) -> None:
    """The table, with what its figures were measured on."""
    first = rows[0]
    meta = first["meta"]
    lines = [
        "# Fusion styles, side by side",
        "",
        f"Made by `python benchmarks/{Path(__file__).name}{' --quick' if options.quick else ''}`: each style trained by "
        f"`mmfusion train configs/{options.recipe.name} fusion.style=STYLE` and measured by `mmfusion evaluate`, seed 0, with "
        "the same encoders, widths, fusion depth, data and steps.",
        "",
        f"Data: {meta['data']}, split {meta['split']}, {meta['images']} images, gallery {meta['gallery']}, {meta['resolution']}. "
        + " ".join(f"{note[0].upper()}{note[1:]}." for note in meta.get("notes", []))
        + f" Reranked: the first {meta['rerank_top_k']} candidates of the dual encoder, reordered by the matching head. "
        f"Captions of {meta['captioned_images']} images.",
        "",
        f"FLOPs by the formula of each style (its `cost`), for {first['text_tokens']} text and {first['image_tokens']} image "
        f"tokens, one forward pass of a pair through the fusion alone. Step: forward, all losses, backward and update of a batch "
        f"of {first['batch_size']}, median of turns in one process on {device_description()}.",
        "",
        HEADER,
        "|---" * (HEADER.count("|") - 1) + "|",
    ]
    for row in rows:
        figures = row["metrics"]

        def pair(prefix: str, figures: dict[str, float] = figures) -> str:
            return " / ".join(
                "–" if figures.get(f"{prefix}_{k}") is None else f"{figures[f'{prefix}_{k}']:.1f}" for k in ("r1", "r10")
            )

        accuracy = row["matching_accuracy"]
        lines.append(
            f"| `{row['style']}` | {row['parameters'] / 1e6:.2f} M ({row['fusion_parameters'] / 1e6:.2f} M) "
            f"| {row['fusion_flops'] / 1e6:.1f} | {row['step_seconds'] * 1e3:.0f} | {pair('i2t')} | {pair('reranked_i2t')} "
            f"| {pair('t2i')} | {pair('reranked_t2i')} | {'–' if accuracy is None else f'{accuracy:.3f}'} "
            f"| {figures.get('cider_d', float('nan')):.2f} | {figures.get('bleu_4', float('nan')):.3f} |"
        )
    images, candidates = max(meta["images"], 1), max(meta["rerank_top_k"], 1)
    lines += [
        "",
        f"Chance: R@1 {100 / images:.2f} % and R@10 {1000 / images:.1f} %; reranked, of candidates in any order, "
        f"{100 / candidates:.1f} % and {min(1000 / candidates, 100):.0f} %; matching accuracy 0.667 for a head that always says "
        "no (a true pair beside two near misses).",
        "",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
