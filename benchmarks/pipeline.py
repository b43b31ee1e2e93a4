"""The training pipeline, images/s: from files and captions to batches, ours beside PyTorch's `DataLoader`.

    python benchmarks/pipeline.py
    python benchmarks/pipeline.py --data FOLDER --images 1024 --batch-size 64

FOLDER holds `captions.jsonl` and its photos; without it the built-in pictures are read (small icons, which say less). Both sides
read the same files in a random order, decode, apply the orientation, resize (bicubic, antialiased), crop, flip, jitter,
normalise, draw a caption, tokenize it with the same vocabulary and batch. Neither keeps decoded pictures; a second line
gives ours with the cache that recipes have on by default (decoded pictures in memory, from the second epoch on).

What is timed is the steady state, as in the middle of a long training: a round starts both anew, lets the first batches pass,
times the next ones, and lets the rest that was read ahead pass too, so that nothing works on while the other side is timed.

The peer decodes with PIL and tokenizes with Hugging Face's `tokenizers`, in as many workers as there are cores.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import (
    Run,
    Seconds,
    add_recipe_arguments,
    between,
    compare,
    core_count,
    interleaved,
    now,
    peer_modules,
    read_recipe,
    use_same_device,
)

if TYPE_CHECKING:
    from mmfusion.config import Recipe
    from mmfusion.data import Source

PEER_MODULES = ("torch", "tokenizers", "PIL")


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the lines."""
    options = read_arguments(arguments)
    modules = peer_modules(*PEER_MODULES) if options.peer else None
    # Pictures are prepared on the processor, and a GPU would only add copies.
    use_same_device(None, "cpu")
    recipe = read_recipe(options.recipe, [*options.overrides, *data_overrides(options)])
    source = open_data(recipe, options.images)
    with tempfile.TemporaryDirectory(prefix="mmfusion-benchmark-") as folder:
        measure(recipe, source, Path(folder) / "vocab.txt", options, modules)


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_arguments(parser)
    parser.add_argument("--data", type=Path, help="folder with captions.jsonl; default the built-in pictures")
    parser.add_argument("--images", type=int, default=1024, help="pictures that are timed a turn")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=core_count(), help="processes of the peer; default one a core")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="measure the peer too")
    return parser.parse_args(arguments)


def data_overrides(options: argparse.Namespace) -> list[str]:
    """Where the recipe's data is to come from."""
    return ["data.source=builtin"] if options.data is None else ["data.source=jsonl", f"data.path={options.data}"]


def open_data(recipe: Recipe, images: int) -> Source:
    """The first so many training pictures, fewer where there are not so many."""
    from mmfusion.data import open_source

    return open_source(recipe.data).limited(recipe.data.train_split, images)


def measure(
    recipe: Recipe, source: Source, vocabulary: Path, options: argparse.Namespace, modules: dict[str, Any] | None
) -> None:
    """Lets ours, ours with its cache and the peer take turns."""
    from mmfusion.training.experiment import prepare_tokenizer

    tokenizer = prepare_tokenizer(recipe, source, vocabulary)
    steps = len(source.examples(recipe.data.train_split)) // options.batch_size
    # torch's workers read two batches ahead each: so many pass before and after the timed ones.
    ahead = 2 * max(options.workers, 1)
    batches = our_batches(recipe, source, tokenizer, options.batch_size, steps + 2 * ahead, cache="none")
    runs: dict[str, Run] = {"ours": steady(batches, ahead, steps)}
    if modules is not None:
        loader = torch_batches(recipe, source, vocabulary, options, steps + 2 * ahead)
        runs["peer"] = steady(loader, ahead, steps)
    batches = our_batches(recipe, source, tokenizer, options.batch_size, steps + 2 * ahead, cache="memory")
    runs["ours_cached"] = steady(batches, ahead, steps)
    timings = interleaved(runs, rounds=options.rounds, warmup=2)
    peer = None if modules is None else "peer"
    peer_name = None if modules is None else f"torch {modules['torch'].__version__} DataLoader, PIL, tokenizers"
    for name, key, cache in (
        ("pipeline", "ours", "none: neither side keeps decoded pictures"),
        ("pipeline.cached", "ours_cached", "ours keeps decoded pictures in memory, the peer does not"),
    ):
        compare(
            name,
            timings,
            key,
            peer,
            units=steps * options.batch_size,
            unit="images/s",
            peer_name=peer_name,
            details={
                "cache": cache,
                "data": "built-in" if options.data is None else options.data.name,
                "images_a_round": steps * options.batch_size,
                "batch_size": options.batch_size,
                "image_size": list(recipe.data.size),
                "augment": recipe.data.augment.model_dump(),
                "peer_workers": options.workers,
            },
        )


def steady(batches: Iterable[Any], ahead: int, steps: int) -> Run:
    """A pass over the batches, of which the first and last few are not timed."""

    def run() -> Seconds:
        times = [now() for _ in batches]
        return between(times[ahead - 1], times[ahead + steps - 1])

    return run


def our_batches(recipe: Recipe, source: Source, tokenizer: Any, batch_size: int, count: int, *, cache: str) -> Iterable[Any]:
    """So many batches of `build_train_dataset`."""
    from mmfusion.data import Quarantine, build_train_dataset
    from mmfusion.training.experiment import image_transform

    split = recipe.data.train_split
    dataset = build_train_dataset(
        source,
        split,
        tokenizer=tokenizer,
        transform=image_transform(recipe),
        batch_size=batch_size,
        seed=recipe.seed,
        quarantine=Quarantine(None, total=len(source.examples(split))),
        augment=recipe.data.augment,
        cache=cache,
    )
    return dataset.take(count)


def torch_batches(recipe: Recipe, source: Source, vocabulary: Path, options: argparse.Namespace, count: int) -> Iterable[Any]:
    """So many batches of a `DataLoader`."""
    from torch_data import Collate, build_loader

    return build_loader(
        peer_rows(source, recipe.data.train_split),
        peer_preparation(recipe),
        Collate(str(vocabulary), recipe.text.max_tokens, recipe.text.lowercase),
        batch_size=options.batch_size,
        batches=count,
        workers=options.workers,
    )


def peer_rows(source: Source, split: str) -> list[Any]:
    """The examples, without classes of ours."""
    from torch_data import Row

    return [Row(row.image.path, row.captions, row.image_id) for row in source.examples(split)]


def peer_preparation(recipe: Recipe) -> Any:
    """What the recipe does to pictures.

    Raises:
        ValueError: If the recipe resizes in a way that the peer has not.
    """
    from torch_data import Preparation

    data, augment = recipe.data, recipe.data.augment
    if data.resize != "squash":
        raise ValueError(f"the peer squashes pictures: set data.resize=squash (found {data.resize})")
    return Preparation(
        height=data.size[0],
        width=data.size[1],
        mean=data.mean,
        std=data.std,
        flip=augment.flip,
        crop_scale=augment.crop_scale,
        crop_ratio=augment.crop_ratio,
        color=augment.color,
    )


if __name__ == "__main__":
    main()
