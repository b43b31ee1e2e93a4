"""Encoding with a trained model, items/s: pictures and sentences into embeddings, ours beside its twin in PyTorch.

    python benchmarks/encoding.py
    python benchmarks/encoding.py --batch-sizes 1 64 --precision bfloat16 --rounds 7

Ours runs three ways: as a `tf.function` (`graph`), the same compiled by XLA (`xla`), and through the signatures of an exported
SavedModel (`export`: `encode_text_ids` for sentences; `encode_image` takes the bytes of a JPEG, so that its peer decodes and
resizes with PIL first). The peer runs eager and through `torch.compile`, in `torch.inference_mode`.
"""

from __future__ import annotations

import argparse
import io
import itertools
import string
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import (
    Run,
    add_recipe_arguments,
    add_threads_argument,
    build_ours,
    compare,
    core_count,
    interleaved,
    peer_modules,
    random_batch,
    read_recipe,
    timed,
    use_same_device,
)

if TYPE_CHECKING:
    import numpy as np

    from mmfusion.config import Recipe

    Batch = dict[str, np.ndarray]

OURS = ("graph", "xla", "export")
PEERS = ("eager", "compiled")
TASKS = ("encode_image", "encode_text", "encode_image_bytes")


def main(arguments: list[str] | None = None) -> None:
    """Measures what the arguments ask for and prints the lines."""
    options = read_arguments(arguments)
    recipe = read_recipe(options.recipe, options.overrides)
    torch = (peer_modules("torch", "PIL") or {}).get("torch") if options.peers else None
    device = use_same_device(torch, options.device, options.threads)
    ours = build_ours(recipe, options.precision)
    with tempfile.TemporaryDirectory(prefix="mmfusion-benchmark-") as folder:
        signatures = exported(recipe, ours, Path(folder) / "export") if "export" in options.ours else None
        twin = None if torch is None else Twin(recipe, device, options.precision)
        for task, batch_size in itertools.product(options.tasks, options.batch_sizes):
            batch = random_batch(recipe, batch_size, options.seed)
            runs = {**our_runs(task, ours, signatures, batch, options), **twin_runs(task, twin, batch, options)}
            print_lines(task, batch_size, runs, options, torch)


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_arguments(parser)
    add_threads_argument(parser)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--items", type=int, default=128, help="pictures or sentences a turn, at least one batch")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--ours", nargs="+", choices=OURS, default=list(OURS))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--photo-size", type=int, nargs=2, default=[375, 500], help="height and width of the JPEG")
    return parser.parse_args(arguments)


def print_lines(task: str, batch_size: int, runs: dict[str, Run], options: argparse.Namespace, torch: Any | None) -> None:
    """Lets the contestants of one task take turns, and prints a line for each pair of ours and theirs."""
    timings = interleaved(runs, rounds=options.rounds, warmup=2)
    peers = [name for name in PEERS if name in runs] or [None]
    for own, peer in itertools.product([name for name in OURS if name in runs], peers):
        compare(
            f"{task}.batch_{batch_size}.{own}" + (f".vs_{peer}" if peer else ""),
            timings,
            own,
            peer,
            units=batch_size * repeats(batch_size, options),
            unit="sentences/s" if task == "encode_text" else "images/s",
            peer_name=None if torch is None or peer is None else f"torch {torch.__version__} {peer}, same architecture",
            details={
                "batch_size": batch_size,
                "precision": options.precision,
                "recipe": options.recipe.stem,
                "threads": options.threads or core_count(),
            },
        )


def repeats(batch_size: int, options: argparse.Namespace) -> int:
    """Batches a round."""
    return max(options.items // batch_size, 1)


def our_runs(
    task: str, ours: Any, signatures: dict[str, Any] | None, batch: Batch, options: argparse.Namespace
) -> dict[str, Run]:
    """Ours for one task, by variant."""
    import tensorflow as tf

    calls: dict[str, Callable[[], Any]] = {}
    tensors = {name: tf.constant(value) for name, value in batch.items()}
    size = len(batch["image_id"])
    if task != "encode_image_bytes":
        for variant in {"graph", "xla"} & set(options.ours):
            calls[variant] = our_call(task, ours, tensors, jit_compile=variant == "xla")
    if signatures is not None and task == "encode_text":
        ids, mask = tensors["token_ids"], tensors["token_mask"]
        calls["export"] = lambda: signatures["encode_text_ids"](token_ids=ids, token_mask=mask)["embedding"]
    if signatures is not None and task == "encode_image_bytes":
        photos = tf.constant([photo(options)] * size)
        calls["export"] = lambda: signatures["encode_image"](image_bytes=photos)["embedding"]
    # In the order of the names, so that every run takes the same turns.
    return {name: repeated(calls[name], repeats(size, options)) for name in sorted(calls)}


def our_call(task: str, ours: Any, tensors: dict[str, Any], *, jit_compile: bool) -> Callable[[], Any]:
    """A traced call of ours."""
    import tensorflow as tf

    if task == "encode_image":
        encode = tf.function(lambda images: ours.encode_image(images, training=False), jit_compile=jit_compile)
        return lambda: encode(tensors["image"])
    encode = tf.function(lambda ids, mask: ours.encode_text(ids, mask, training=False), jit_compile=jit_compile)
    return lambda: encode(tensors["token_ids"], tensors["token_mask"])


def repeated(call: Callable[[], Any], count: int) -> Run:
    """A round of so many calls; reading each answer waits for the device, as a server does."""

    def work() -> None:
        for _ in range(count):
            call().numpy()

    return timed(work)


def exported(recipe: Recipe, ours: Any, folder: Path) -> dict[str, Any]:
    """The signatures of an export of our model, loaded back."""
    import tensorflow as tf

    from mmfusion.export.saved_model import export_model
    from mmfusion.training.experiment import LoadedRun, image_transform
    from mmfusion.training.run_folder import RunFolder

    run = LoadedRun(RunFolder(folder / "run"), recipe, ours, made_up_tokenizer(recipe), image_transform(recipe))
    loaded = tf.saved_model.load(str(export_model(run, folder / "saved_model")))
    # The object must outlive the signatures, which hold its variables weakly.
    return {**loaded.signatures, "loaded": loaded}


def made_up_tokenizer(recipe: Recipe) -> Any:
    """A tokenizer of the recipe's size; its words do not matter, since ids are what is measured."""
    from mmfusion.text import SPECIAL_TOKENS, WordPieceTokenizer

    known = [*SPECIAL_TOKENS, *string.ascii_lowercase, *string.digits]
    made_up = [f"word{number}" for number in range(recipe.text.vocabulary_size - len(known))]
    vocabulary = [*known, *made_up][: recipe.text.vocabulary_size]
    return WordPieceTokenizer(vocabulary=vocabulary, lowercase=recipe.text.lowercase, max_length=recipe.text.max_tokens)


def photo(options: argparse.Namespace) -> bytes:
    """A JPEG of smooth noise, about as heavy to decode as a photograph."""
    import tensorflow as tf

    coarse = tf.random.stateless_uniform([24, 32, 3], [options.seed, 1], maxval=255.0)
    pixels = tf.image.resize(coarse, options.photo_size, "bicubic")
    grain = tf.random.stateless_normal([*options.photo_size, 3], [options.seed, 2], stddev=6.0)
    return tf.io.encode_jpeg(tf.cast(tf.clip_by_value(pixels + grain, 0.0, 255.0), tf.uint8), quality=90).numpy()


class Twin:
    """The peer, ready to encode.

    Args:
        recipe: The recipe.
        device: torch's name of the device.
        precision: ``"float32"``, or ``"bfloat16"`` by autocast.
    """

    def __init__(self, recipe: Recipe, device: str, precision: str) -> None:
        import torch
        from torch_model import build_twin

        self.torch = torch
        self.recipe = recipe
        self.device = device
        self.precision = precision
        self.model = build_twin(recipe, build_ours(recipe, "float32"), device).eval()

    def call(self, task: str, batch: Batch, options: argparse.Namespace, *, compiled: bool) -> Callable[[], Any]:
        """A call for one task."""
        from torch_model import torch_batch

        tensors = torch_batch(batch, self.device)
        function = self.model.encode_text if task == "encode_text" else self.model.encode_image
        encode = self.torch.compile(function, dynamic=False) if compiled else function
        photos = [photo(options)] * len(batch["image_id"]) if task == "encode_image_bytes" else []

        def run() -> Any:
            autocast = self.torch.autocast(self.device, dtype=self.torch.bfloat16, enabled=self.precision == "bfloat16")
            with self.torch.inference_mode(), autocast:
                if task == "encode_text":
                    return encode(tensors["token_ids"], tensors["token_mask"]).cpu()
                return encode(self.pixels(photos) if photos else tensors["image"]).cpu()

        return run

    def pixels(self, photos: list[bytes]) -> Any:
        """JPEGs as a batch, decoded and resized by PIL."""
        from PIL import Image

        height, width = self.recipe.data.size
        data = self.recipe.data
        tensors = []
        for content in photos:
            picture = Image.open(io.BytesIO(content)).convert("RGB")
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            tensors.append(self.torch.frombuffer(bytearray(picture.tobytes()), dtype=self.torch.uint8))
        images = self.torch.stack(tensors).to(self.device).reshape(-1, height, width, 3).permute(0, 3, 1, 2)
        mean, std = (self.torch.tensor(value, device=self.device)[:, None, None] for value in (data.mean, data.std))
        return ((images / 255.0 - mean) / std).contiguous()


def twin_runs(task: str, twin: Twin | None, batch: Batch, options: argparse.Namespace) -> dict[str, Run]:
    """The peer for one task, by variant; a variant that does not work here is left out."""
    runs: dict[str, Run] = {}
    for variant in options.peers if twin is not None else ():
        run = repeated(
            twin.call(task, batch, options, compiled=variant == "compiled"),
            repeats(len(batch["image_id"]), options),
        )
        try:
            run()
        except Exception as error:
            print(f"left out: the peer's {variant} {task} fails: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        runs[variant] = run
    return runs


if __name__ == "__main__":
    main()
