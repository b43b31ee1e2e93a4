"""Milliseconds a token of decoding as texts grow longer, and the memory of its caches beside their formula.

    python benchmarks/decoding_cost.py                                # 6 layers of width 512, 196 patches, 4 images
    python benchmarks/decoding_cost.py --lengths 16 256 --dim 768 --depth 12 --style merged

Greedy and with beams, random weights, from encoded patches to token ids; no text ends early. A token's cost is that of all but
the first, ``(t(n) - t(1)) / (n - 1)``: what is computed once an image (its keys and values, the room) is in the first. With
``same_room`` the cache has room for the longest text throughout, so that equal work a token is expected; with ``own_room`` as
much as the text is long. The peer of each line is ours at the shortest length: a ratio of 1 is a flat cost. Lines of ``memory``
have the tensors of the state as it is when decoding begins, and as the peer `mmfusion.models.captioning.state_size`: equal is
right.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from common import END, PAD, START, add_threads_argument, core_count, emit, interleaved, timed, use_same_device

ROOMS = ("same_room", "own_room")


def main(arguments: list[str] | None = None) -> None:
    """Measures what the arguments ask for and prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 64, 128, 256], help="tokens to write, from 2 on")
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS))
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4], help="1 is greedy")
    parser.add_argument("--style", default="cross", help="of fusion")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--depth", type=int, default=6, help="layers of the fusion, all of which the text goes through")
    parser.add_argument("--num-heads", type=int, default=8)
    parser.add_argument("--grid", type=int, default=14, help="its square is the number of patches")
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    add_threads_argument(parser)
    options = parser.parse_args(arguments)
    if min(options.lengths) < 2:
        parser.error("--lengths: a text has 2 tokens or more")
    options.lengths = sorted(options.lengths)
    use_same_device(None, "cpu", options.threads or core_count())
    model = build(options)
    random = np.random.default_rng(0)
    patches = random.normal(size=(options.images, options.grid**2, options.dim)).astype(model.compute_dtype)
    for beams in options.beams:
        for room in options.rooms:
            time(model, patches, beams, room, options)
        memory(model, patches, beams, options)


def build(options: argparse.Namespace) -> Any:
    """A model of the sizes asked for, with random weights; its image encoder is as small as can be, since it is not used."""
    from mmfusion.encoders import TextTransformer, VisionTransformer
    from mmfusion.fusion import STYLES
    from mmfusion.models import CaptioningHead, ImageTextModel

    dtype = "mixed_bfloat16" if options.dtype == "bfloat16" else "float32"
    return ImageTextModel(
        image_encoder=VisionTransformer(
            image_size=options.grid, patch_size=1, dim=options.dim, depth=1, num_heads=options.num_heads, dtype=dtype
        ),
        text_encoder=TextTransformer(
            vocabulary_size=options.vocabulary, max_length=options.lengths[-1] + 1, dim=options.dim, depth=0, dtype=dtype
        ),
        fusion=STYLES[options.style](dim=options.dim, depth=options.depth, num_heads=options.num_heads, dtype=dtype),
        captioning_head=CaptioningHead(start_id=START, end_id=END, pad_id=PAD, dtype=dtype),
    )


def time(model: Any, patches: np.ndarray, beams: int, room: str, options: argparse.Namespace) -> None:
    """Prints the lines of one number of beams."""
    lengths = [1, *options.lengths]
    work = {n: writer(model, beams, n, options.lengths[-1] if room == "same_room" else n) for n in lengths}
    written = {n: np.asarray(write(patches).lengths) for n, write in work.items()}
    for length, found in written.items():
        assert (found == length).all(), f"a text of {length} tokens has {found}"
    runs = {str(n): timed(lambda write=write: np.asarray(write(patches).token_ids)) for n, write in work.items()}
    timings = interleaved(runs, rounds=options.rounds)

    def cost(length: int, clock: str) -> float:
        return 1000 * (getattr(timings[str(length)], clock) - getattr(timings["1"], clock)) / (length - 1)

    shortest = options.lengths[0]
    for length in options.lengths:
        emit(
            f"decoding_cost.{options.style}.{named(beams)}.{room}.{length}",
            cost(length, "wall"),
            f"ms a token of {options.images} images",
            peer=f"ours at {shortest} tokens",
            peer_value=cost(shortest, "wall"),
            less_is_better=True,
            details={
                **sizes(options, beams),
                "room": options.lengths[-1] if room == "same_room" else length,
                "first_token_ms": round(1000 * timings["1"].wall, 3),
                "processor_ms_a_token": round(cost(length, "processor"), 3),
                "rounds": options.rounds,
                "threads": options.threads or core_count(),
            },
        )


def writer(model: Any, beams: int, length: int, room: int) -> Callable[[np.ndarray], Any]:
    """Writes texts of exactly so many tokens, as a graph."""
    from mmfusion.decoding import compiled

    how = {"max_tokens": room, "limit": length, "min_tokens": length, **({"beam_size": beams} if beams > 1 else {})}
    return compiled(lambda patches: model.caption_patches(patches, **how), model.variables)


def memory(model: Any, patches: np.ndarray, beams: int, options: argparse.Namespace) -> None:
    """Prints what the state holds beside what the formula says, for each room."""
    import keras
    from keras import ops

    from mmfusion.layers.cache import shared_by_texts
    from mmfusion.models.captioning import first_state, state_size

    for length in options.lengths:
        state = first_state(model, ops.convert_to_tensor(patches), None, length)
        tensors = zip(keras.tree.flatten(state), keras.tree.flatten(shared_by_texts(state)), strict=True)
        # Scalars and masks are no part of the formula.
        held = sum(
            (1 if shared else beams) * int(np.prod(tensor.shape)) * (4 if ops.dtype(tensor) == "float32" else 2)
            for tensor, shared in tensors
            if tensor is not None and "float" in ops.dtype(tensor)
        )
        size = state_size(model, length)
        emit(
            f"decoding_cost.{options.style}.{named(beams)}.memory.{length}",
            held / 2**20,
            "MiB",
            peer="the formula",
            peer_value=size.bytes(options.images, beams, options.dtype) / 2**20,
            less_is_better=True,
            details={
                **sizes(options, beams),
                "room": length,
                "bytes": held,
                "formula_bytes": size.bytes(options.images, beams, options.dtype),
                "of_images_bytes": options.images * size.shared * (4 if options.dtype == "float32" else 2),
            },
        )


def named(beams: int) -> str:
    """What a number of beams is called."""
    return "greedy" if beams == 1 else f"beams_{beams}"


def sizes(options: argparse.Namespace, beams: int) -> dict[str, Any]:
    """What was decoded."""
    names = ("images", "dim", "depth", "num_heads", "vocabulary", "dtype")
    return {**{name: getattr(options, name) for name in names}, "beams": beams, "patches": options.grid**2}


if __name__ == "__main__":
    main()
