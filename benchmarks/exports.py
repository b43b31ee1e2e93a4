"""A model's exports beside the run that they are of: pictures/s from the bytes of JPEGs, through one Python interface.

    python benchmarks/exports.py
    python benchmarks/exports.py --run runs/quickstart --functions caption --batch-sizes 1 8 --rounds 9

The peer is `mmfusion.load(RUN)`, the Keras model with its decoding compiled; its SavedModel, LiteRT and ONNX take turns with
it in one process. `caption` writes by beam search as the recipe says, `match` scores a picture and a sentence.
Without `--run` the model has the sizes of the recipe and weights that were never trained: what it writes is as long as it may be.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import (
    EXTRAS,
    add_recipe_arguments,
    add_threads_argument,
    build_ours,
    compare,
    core_count,
    interleaved,
    read_recipe,
    timed,
    use_same_device,
)
from encoding import made_up_tokenizer, photo

SENTENCES = ("a dog runs on sand", "two men on a bench", "a red heart", "a face")
FUNCTIONS = ("caption", "encode_image", "match")
RUNTIMES = {"litert": ("ai_edge_litert",), "onnx": ("onnxruntime", "tf2onnx")}


def main(arguments: list[str] | None = None) -> None:
    """Measures what the arguments ask for and prints the lines."""
    options = read_arguments(arguments)
    threads = options.threads or core_count()
    use_same_device(None, "cpu", threads)
    with tempfile.TemporaryDirectory(prefix="mmfusion-benchmark-") as folder:
        run = options.run or untrained_run(options, Path(folder) / "run")
        measure(predictors(run, Path(folder), options.kinds, max(options.batch_sizes)), threads, options)


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_arguments(parser)
    add_threads_argument(parser)
    parser.add_argument("--run", type=Path, help="a run folder, in place of a recipe with fresh weights")
    parser.add_argument("--kinds", nargs="+", choices=("saved_model", *RUNTIMES), default=["saved_model", *RUNTIMES])
    parser.add_argument(
        "--functions", nargs="+", choices=("caption", "encode_image", "match"), default=["caption", "encode_image"]
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--photo-size", nargs=2, type=int, default=(240, 320), metavar=("HEIGHT", "WIDTH"))
    return parser.parse_args(arguments)


def untrained_run(options: argparse.Namespace, folder: Path) -> Path:
    """A run folder of the recipe's model with fresh weights."""
    from mmfusion.config import save_recipe
    from mmfusion.text import write_vocabulary
    from mmfusion.training import RunFolder
    from mmfusion.training.callbacks import save_model

    recipe = read_recipe(options.recipe, options.overrides)
    run = RunFolder(folder)
    run.create()
    save_recipe(recipe, run.recipe)
    write_vocabulary(made_up_tokenizer(recipe).vocabulary, run.vocabulary)
    save_model(build_ours(recipe, "float32"), run.best_model)
    return folder


def predictors(run: Path, folder: Path, kinds: list[str], batch_size: int) -> dict[str, Any]:
    """The run and its exports by kind, those whose runtime is installed."""
    import mmfusion
    from mmfusion.export import export_model, export_portable
    from mmfusion.training import load_run

    found = {"run": mmfusion.load(run, batch_size=batch_size)}
    for kind in kinds:
        if not all(importlib.util.find_spec(name) for name in RUNTIMES.get(kind, ())):
            print(f"no figures of {kind}: its runtime is not installed. {EXTRAS}", file=sys.stderr)
            continue
        if kind == "saved_model":
            export_model(load_run(run), folder / kind)
        else:
            export_portable(load_run(run), folder / kind, kind=kind)
        found[kind] = mmfusion.load(folder / kind, batch_size=batch_size)
    return found


def measure(found: dict[str, Any], threads: int, options: argparse.Namespace) -> None:
    """Lets run and exports take turns, and prints a line an export."""
    for function in options.functions:
        for size in options.batch_sizes:
            pictures = [photo(argparse.Namespace(seed=seed, photo_size=options.photo_size)) for seed in range(size)]
            asked = {name: question(predictor, function, pictures) for name, predictor in found.items()}
            alike = answers_alike(function, {name: ask() for name, ask in asked.items()})
            timings = interleaved({name: timed(ask) for name, ask in asked.items()}, rounds=options.rounds)
            for name in (name for name in found if name != "run"):
                compare(
                    f"exports.{name}.{function}.{size}",
                    timings,
                    name,
                    "run",
                    units=size,
                    unit="pictures/s",
                    peer_name="mmfusion.load(RUN)",
                    details={"alike": alike[name], "threads": threads, "trained": options.run is not None},
                )


def question(predictor: Any, function: str, pictures: list[bytes]) -> Callable[[], Any]:
    """What is timed."""
    texts = [SENTENCES[number % len(SENTENCES)] for number in range(len(pictures))]
    if function == "match":
        return lambda: predictor.match(pictures, texts)
    return lambda: getattr(predictor, function)(pictures)


def answers_alike(function: str, answers: dict[str, Any]) -> dict[str, str]:
    """How near each answer is to the run's: captions that are equal, or the largest difference of numbers."""
    import numpy as np

    if function == "caption":
        words = {name: [caption.text for caption in answer] for name, answer in answers.items()}
        return {
            name: f"{sum(a == b for a, b in zip(own, words['run'], strict=True))} of {len(own)} captions equal"
            for name, own in words.items()
        }
    return {name: f"{float(np.abs(answer - answers['run']).max()):.1e} apart at most" for name, answer in answers.items()}


if __name__ == "__main__":
    main()
