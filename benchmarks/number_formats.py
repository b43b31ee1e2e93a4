"""A trained run in bfloat16, float16 and int8: what it weighs, what it costs in accuracy and how long it takes, beside itself.

    python benchmarks/number_formats.py runs/quickstart
    python benchmarks/number_formats.py runs/flickr8k --formats bfloat16 int8 --images 500 --rounds 9 --threads 1

The model is brought to each format after its training (`mmfusion.models.in_number_format`); the peer is the same model in
float32, in the same process, on the same validation images. Of weights and seconds `ratio` is float32's over the format's: above
1 the format is smaller or faster. Of accuracy it is the format's over float32's: below 1 the format is worse. Figures of quality
need a run that was trained until it is good: of one that guesses they say nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Timing, add_threads_argument, core_count, emit, interleaved, timed, use_same_device

if TYPE_CHECKING:
    import numpy as np

    from mmfusion.data import Source
    from mmfusion.training import LoadedRun

FORMATS = ("bfloat16", "float16", "int8")
PEER = "float32, the same weights"
QUALITY = {
    "i2t_r1": "recall@1 image to text, %", "i2t_r10": "recall@10 image to text, %", "t2i_r1": "recall@1 text to image, %",
    "t2i_r10": "recall@10 text to image, %", "matching_accuracy": "share of pairs told right, chance 0.5", "cider_d": "CIDEr-D",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measures what the arguments ask for and prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder, as mmfusion train makes it")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--split", help="default: the recipe's validation split")
    parser.add_argument("--images", type=int, help="only the first so many images of it; default all")
    parser.add_argument("--matched", type=int, default=100, help="images whose every pair with every text is matched")
    parser.add_argument("--batch-size", type=int, default=16, help="images, and sentences, of a timed batch")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each format")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto takes a GPU")
    add_threads_argument(parser)
    options = parser.parse_args(arguments)
    use_same_device(None, options.device, options.threads)
    measure(options)


def measure(options: argparse.Namespace) -> None:
    """Prints the lines of one run."""
    from mmfusion.data import open_source
    from mmfusion.models import weight_bytes
    from mmfusion.training import load_run

    trained = load_run(options.run)
    runs = {name: trained.in_number_format(name) for name in ("float32", *options.formats)}
    source = open_source(trained.recipe.data)
    split = options.split or trained.recipe.data.validation_split
    told = {"run": trained.recipe.name, "trained_in": trained.recipe.train.precision, "data": source.name, "split": split}
    told["parameters"] = trained.model.count_params()
    weights = {name: weight_bytes(run.model) / 2**20 for name, run in runs.items()}
    for name in options.formats:
        details = {**told, **stored(runs[name].model)}
        emit_less(f"number_formats.{name}.weights", weights[name], "MiB", weights["float32"], details)
    quality = {name: quality_of(run, source, split, options) for name, run in runs.items()}
    for name in options.formats:
        for figure, value in quality[name].items():
            emit(
                f"number_formats.{name}.{figure}", value, QUALITY[figure], peer=PEER, peer_value=quality["float32"][figure],
                details={**told, "images": min(options.images or 10**9, len(source.splits[split]))},
            )  # fmt: skip
    for task, calls in tasks(runs, batch_of(trained, source, split, options.batch_size)).items():
        timings = interleaved({name: timed(call) for name, call in calls.items()}, rounds=options.rounds, warmup=2)
        for name in options.formats:
            unit = f"s, a batch of {options.batch_size}"
            details = {**told, **spread(timings[name], timings["float32"]), "threads": options.threads or core_count()}
            emit_less(f"number_formats.{name}.{task}", timings[name].wall, unit, timings["float32"].wall, details)


def emit_less(name: str, value: float, unit: str, peer_value: float, details: Mapping[str, Any]) -> None:
    """A line of what should be little."""
    emit(name, value, unit, peer=PEER, peer_value=peer_value, details=details, less_is_better=True)


def stored(model: Any) -> dict[str, Any]:
    """How many numbers are stored in each format: what stays float32 in int8 shows here."""
    counts: dict[str, int] = {}
    for weight in model.weights:
        counts[weight.dtype] = counts.get(weight.dtype, 0) + int(weight.shape.num_elements())
    return {"numbers": counts}


def spread(own: Timing, their: Timing) -> dict[str, Any]:
    """How far the rounds are apart, and the ratio of processor time, which a busy machine moves less."""
    ratios = [theirs.wall / ours.wall for ours, theirs in zip(own.rounds, their.rounds, strict=True)]
    return {
        "rounds": len(own.rounds),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "processor_time_ratio": round(their.processor / own.processor, 2),
    }


def quality_of(run: LoadedRun, source: Source, split: str, options: argparse.Namespace) -> dict[str, float]:
    """Recall of the dual encoder, accuracy of the matching head, CIDEr-D, of the heads that the model has."""
    from mmfusion.evaluation import Evaluator
    from mmfusion.evaluation.matching_retrieval import retrieval_by_matching

    model, found = run.model, {}
    asked = {"source": source, "split": split, "tokenizer": run.tokenizer, "transform": run.transform}
    evaluator = Evaluator(model, **asked, limit=options.images)
    if "contrastive" in model.heads:
        found |= evaluator.retrieval()
    if "matching" in model.heads:
        small = Evaluator(model, **asked, limit=min(options.matched, options.images or options.matched))
        found["matching_accuracy"] = retrieval_by_matching(small).metrics["matching_accuracy"]
    if "captioning" in model.heads:
        found |= evaluator.captions(**run.recipe.decoding.options()).metrics
    return {name: found[name] for name in QUALITY if name in found}


def batch_of(run: LoadedRun, source: Source, split: str, size: int) -> dict[str, np.ndarray]:
    """Images of the split and their first captions, as the model reads them."""
    import tensorflow as tf

    from mmfusion.data import Quarantine, Source, build_eval_images

    examples = (source.splits[split] * size)[:size]
    few = Source(name=source.name, splits={"few": examples}, bad_rows=[])
    quarantine = Quarantine(None, total=size, max_share=0.0)
    batches = build_eval_images(
        few, "few", transform=run.transform, batch_size=size, quarantine=quarantine, tokenizer=run.tokenizer
    )
    batch = {name: values.numpy() for name, values in next(iter(batches)).items()}
    tokens = run.tokenizer(tf.constant([example.captions[0] for example in examples]))
    return batch | {"token_ids": tokens.token_ids.numpy(), "token_mask": tokens.token_mask.numpy()}


def tasks(runs: Mapping[str, LoadedRun], batch: dict[str, np.ndarray]) -> dict[str, dict[str, Callable[[], Any]]]:
    """Calls by task and format, each a graph that is traced once, that return when their numbers are here."""
    import tensorflow as tf

    image, mask = tf.constant(batch["image"]), None if "image_mask" not in batch else tf.constant(batch["image_mask"])
    ids, real = tf.constant(batch["token_ids"]), tf.constant(batch["token_mask"])
    heads = next(iter(runs.values())).model.heads
    calls: dict[str, dict[str, Callable[[], Any]]] = {}
    for name, run in runs.items():
        model, written = run.model, run.recipe.decoding.options()
        encode_image = tf.function(lambda images, mask, model=model: model.encode_patches(images, mask, training=False)[0])
        encode_text = tf.function(lambda ids, real, model=model: model.text_encoder(ids, token_mask=real, training=False))
        found: dict[str, Callable[[], Any]] = {
            # Whatever a batch gives, it is here when a sum of it is.
            "encode_image": lambda encode=encode_image: float(tf.reduce_sum(tf.cast(encode(image, mask), tf.float32))),
            "encode_text": lambda encode=encode_text: float(tf.reduce_sum(tf.cast(encode(ids, real), tf.float32))),
        }
        if "captioning" in heads:
            found["caption"] = lambda model=model, how=written: model.caption(image, mask, **how).token_ids.numpy()
        for task, call in found.items():
            calls.setdefault(task, {})[name] = call
    return calls


if __name__ == "__main__":
    main()
