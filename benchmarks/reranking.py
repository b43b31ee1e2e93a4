"""Seconds a pair of reranking: ours beside transformers' `BlipForImageTextRetrieval` base, 384 px, the same random weights.

    python benchmarks/reranking.py                                  # the top 128 of 1,000 texts of one image
    python benchmarks/reranking.py --images 2 --rounds 5 --precisions float32 bfloat16

The likeliest texts of each image, by our contrastive head, are what all score; they are found once, before the clock runs. A
round begins with pixels and token ids and ends with all logits: ours are of `match_matrix`. The peer is measured twice, in a
process of its own that waits while ours runs: ``published``, its `forward` (which encodes the image of every pair, so that a few
pairs are all that is feasible), and ``vision_once``, each image encoded once and its tokens expanded for its texts, as one can
write with its parts. It gets batches as a user makes them, padded to the longest text in them; texts have 10 to 35 tokens.
`details` say how many pairs each scored, and how far the logits are apart at most.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import EXTRAS, add_threads_argument, core_count, emit, interleaved, timed, use_same_device
from peer_process import Peer, has_transformers, peer_of, ratio_range

PEER = Path(__file__).with_name("reranking_peer.py")
METHODS = {"published": "pairs", "vision_once": "vision_once"}


def main(arguments: list[str] | None = None) -> None:
    """Measures what the arguments ask for and prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--candidates", type=int, default=128, help="texts of each image that are scored")
    parser.add_argument("--lengths", type=int, nargs=2, default=(10, 35), metavar=("LEAST", "MOST"), help="tokens of a text")
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32"], help="of ours")
    parser.add_argument("--peers", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--peer-batch", type=int, default=32, help="pairs at a time where the peer encodes an image once")
    parser.add_argument("--published-pairs", type=int, default=8, help="pairs an image that the peer's forward scores")
    parser.add_argument("--published-batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    add_threads_argument(parser)
    options = parser.parse_args(arguments)
    if options.candidates > options.texts:
        parser.error("there are fewer --texts than --candidates")
    threads = options.threads or core_count()
    use_same_device(None, "cpu", threads)
    if not has_transformers():
        print(f"no peer, and so no weights: transformers and torch are not installed. {EXTRAS}", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory(prefix="mmfusion-benchmark-") as folder:
        told = {
            "images": options.images, "threads": threads, "batch": options.peer_batch, "tiny": options.tiny,
            "published_pairs": min(options.published_pairs, options.candidates), "published_batch": options.published_batch,
        }  # fmt: skip
        with peer_of(PEER, folder, json.dumps(told)) as peer:
            measure(Path(folder), peer, told, options)


def measure(folder: Path, peer: Peer, told: dict[str, Any], options: argparse.Namespace) -> None:
    """Prints the lines."""
    import keras

    images = keras.ops.convert_to_tensor(np.load(folder / "images.npy"))
    models = {precision: converted(folder, precision) for precision in options.precisions}
    first = next(iter(models.values()))
    token_ids, token_mask = texts(first, options)
    chosen = candidates(first, images, token_ids, token_mask, options.candidates)
    np.savez(folder / "candidates.npz", token_ids=token_ids[chosen], token_mask=token_mask[chosen])
    scores: dict[str, np.ndarray] = {}

    def rerank(precision: str) -> None:
        found = np.asarray(models[precision].match_matrix(images, token_ids, token_mask, candidates=chosen))
        scores[precision] = np.take_along_axis(found, chosen, axis=1)

    runs = {precision: timed(lambda precision=precision: rerank(precision)) for precision in models}
    asked = {name: METHODS[name] for name in options.peers}
    timings = interleaved(
        {**runs, **{name: lambda method=method: peer.ask(method) for name, method in asked.items()}}, rounds=options.rounds
    )
    for precision in models:
        for name, method in asked.items():
            own, their, expected = timings[precision], timings[name], np.asarray(peer.results[method])
            found = scores[precision][:, : expected.shape[1]]
            parts = chosen.size / expected.size
            emit(
                f"reranking.blip.{precision}.{name}",
                1000 * own.wall / chosen.size,
                "ms a pair",
                peer=f"{peer.name}, float32, the same weights, {DESCRIPTIONS[name]}",
                peer_value=1000 * their.wall / expected.size,
                less_is_better=True,
                details={
                    "images": options.images,
                    "pairs": int(chosen.size),
                    "peer_pairs": int(expected.size),
                    "chosen_of": options.texts,
                    "tokens": list(options.lengths),
                    "peer_batch": told["published_batch" if name == "published" else "batch"],
                    "rounds": options.rounds,
                    "processor_time_ratio": round(parts * their.processor / own.processor, 2),
                    "ratio_range": [round(parts * ratio, 2) for ratio in ratio_range(own, their)],
                    "largest_difference": float(f"{np.abs(found - expected).max():.3g}"),
                    "spread_of_logits": float(f"{expected.std():.3g}"),
                    "same_best": f"{int((found.argmax(1) == expected.argmax(1)).sum())} of {len(found)}",
                    "threads": told["threads"],
                },
            )


DESCRIPTIONS = {"published": "its forward", "vision_once": "vision once an image"}


def converted(folder: Path, precision: str) -> Any:
    """The peer's model as ours."""
    from mmfusion.convert import convert_blip_retrieval

    return convert_blip_retrieval(folder / "model.safetensors", folder / "config.json", dtype=precision)


def texts(model: Any, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Random token ids ``int32[N, T]`` of random lengths, and which are real."""
    random, (least, most) = np.random.default_rng(0), options.lengths
    vocabulary = model.text_encoder.vocabulary_size
    mask = np.arange(most) < random.integers(least, most + 1, options.texts)[:, None]
    return np.where(mask, random.integers(1, vocabulary - 4, mask.shape), 0).astype("int32"), mask


def candidates(model: Any, images: Any, token_ids: np.ndarray, token_mask: np.ndarray, number: int) -> np.ndarray:
    """The likeliest texts of each image by the contrastive head, ``int32[I, C]``."""
    from mmfusion.decoding import compiled

    encode = compiled(lambda ids, mask: model.encode_text(ids, mask), model.variables)
    words = [encode(token_ids[start : start + 64], token_mask[start : start + 64]) for start in range(0, len(token_ids), 64)]
    scores = np.asarray(model.encode_image(images)) @ np.concatenate(words).T
    return np.argsort(-scores, axis=1)[:, :number].astype("int32")


if __name__ == "__main__":
    main()
