"""Captions of pictures, seconds: ours beside open_clip's CoCa ViT-B/32 and transformers' BLIP base, with the same random weights.

    MMFUSION_OPEN_CLIP_PYTHON=.../bin/python python benchmarks/captioning.py
    python benchmarks/captioning.py --families blip --contestants float32 bfloat16 onnx --rounds 7

Four pictures, 30 tokens of CoCa (its start token among them) and 20 of BLIP, from pixels to token ids. The peer runs in a
process of its own and waits while ours runs. Ours are the Keras model in float32 and in bfloat16, and its ONNX form in float32.
Greedy words are compared, and BLIP's of three beams; `details` say how many are equal. CoCa's groups of beams have no diversity
there, so ours have none either. The peer's Python is this one for BLIP, and for CoCa what `MMFUSION_OPEN_CLIP_PYTHON` names;
without it there are no figures, since the weights are the peer's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import EXTRAS, add_threads_argument, core_count, emit, interleaved, timed, use_same_device
from onnx_captions import OnnxCaptions
from peer_process import Peer, has_transformers, peer_of, ratio_range

PEERS = Path(__file__).with_name("captioning_peers.py")
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "coca": {
        "greedy": {"method": "greedy"},
        "top_p": {"method": "sample", "top_p": 0.9},
        "beams": {"method": "beam", "beam_size": 6, "num_groups": 3, "diversity_penalty": 0.0},
    },
    "blip": {"greedy": {"method": "greedy"}, "beams": {"method": "beam", "beam_size": 3}},
}
TOKENS = {"coca": 30, "blip": 20}
CONTESTANTS = ("float32", "bfloat16", "onnx")


def main(arguments: list[str] | None = None) -> None:
    """Measures what the arguments ask for and prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), help="ours")
    parser.add_argument("--methods", nargs="+", help="only these: greedy, top_p, beams")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--tokens", type=int, help="default 30 for CoCa, 20 for BLIP")
    parser.add_argument("--rounds", type=int, default=5)
    add_threads_argument(parser)
    options = parser.parse_args(arguments)
    threads = options.threads or core_count()
    use_same_device(None, "cpu", threads)
    for family in options.families:
        if family == "coca" and "MMFUSION_OPEN_CLIP_PYTHON" not in os.environ:
            print("no peer, and so no weights: MMFUSION_OPEN_CLIP_PYTHON names no Python that has open_clip", file=sys.stderr)
            continue
        if family == "blip" and not has_transformers():
            print(f"no peer, and so no weights: transformers and torch are not installed. {EXTRAS}", file=sys.stderr)
            continue
        tokens = options.tokens or TOKENS[family]
        with tempfile.TemporaryDirectory(prefix="mmfusion-benchmark-") as folder:
            told = {"images": options.images, "tokens": tokens, "threads": threads}
            python = None if family == "blip" else os.environ["MMFUSION_OPEN_CLIP_PYTHON"]
            with peer_of(PEERS, family, folder, json.dumps(told), python=python) as peer:
                measure(family, Path(folder), peer, tokens, options)


def measure(family: str, folder: Path, peer: Peer, tokens: int, options: argparse.Namespace) -> None:
    """Prints the lines of one family."""
    import keras

    images = keras.ops.convert_to_tensor(np.load(folder / "images.npy"))
    # open_clip counts the start token, and ends its last token itself; BLIP's are new ones.
    length = {"max_tokens": tokens - 2 if family == "coca" else tokens, "min_tokens": tokens - 2 if family == "coca" else tokens}
    writers = {name: writer(family, folder, name, images, length["max_tokens"], options.threads) for name in options.contestants}
    for method, how in METHODS[family].items():
        if options.methods and method not in options.methods:
            continue
        written: dict[str, Any] = {}

        def write(name: str, how: dict[str, Any] = how, written: dict[str, Any] = written) -> None:
            written[name] = writers[name](images, **how, **length)

        runs = {name: timed(lambda name=name: write(name)) for name in writers}
        timings = interleaved({**runs, "peer": lambda method=method: peer.ask(method)}, rounds=options.rounds)
        for name in writers:
            own, their = timings[name], timings["peer"]
            emit(
                f"captioning.{family}.{method}.{name}",
                own.wall,
                f"s, {options.images} pictures, {tokens} tokens",
                peer=f"{peer.name}, float32, the same weights",
                peer_value=their.wall,
                less_is_better=True,
                details={
                    "rounds": options.rounds,
                    "processor_time_ratio": round(their.processor / own.processor, 2),
                    "ratio_range": ratio_range(own, their),
                    "equal_words": equal_words(family, written[name], np.asarray(peer.results[method])),
                    "threads": options.threads or core_count(),
                },
            )


def equal_words(family: str, ours: np.ndarray, theirs: np.ndarray) -> str:
    """How many words of ours are the peer's, from the first after the start token."""
    ours = ours[:, 0] if ours.ndim == 3 else ours
    theirs = theirs[:, 1 : 1 + ours.shape[1]]
    size = min(ours.shape[1], theirs.shape[1])
    return f"{int((ours[:, :size] == theirs[:, :size]).sum())} of {ours[:, :size].size}"


def writer(family: str, folder: Path, name: str, images: Any, max_tokens: int, threads: int | None) -> Callable[..., np.ndarray]:
    """What makes token ids of pictures and options."""
    if name == "onnx":
        # Done with the model when it is converted: its weights are the graph's.
        return OnnxCaptions(converted(family, folder, "float32"), tuple(images.shape[1:]), max_tokens, threads)
    model = converted(family, folder, name)
    return lambda images, **options: np.asarray(model.caption(images, **options).token_ids)


def converted(family: str, folder: Path, precision: str) -> Any:
    """The peer's model as ours."""
    from mmfusion.convert import convert_blip_captioning, convert_open_clip_coca

    convert = convert_open_clip_coca if family == "coca" else convert_blip_captioning
    return convert(folder / "model.safetensors", folder / "config.json", dtype=precision)


if __name__ == "__main__":
    main()
