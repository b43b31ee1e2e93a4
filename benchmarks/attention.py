"""Attention: ours beside `keras.layers.MultiHeadAttention`, and how time and memory of every kernel grow with the sequence.

    python benchmarks/attention.py
    python benchmarks/attention.py --parts step chunked --threads 1
    python benchmarks/attention.py --parts growth --max-length 16384 --figure growth.png

Three parts. `step`: training steps (forward, and the gradient of input and weights) of one layer, in turns, at 197, 577 and 1,025
tokens. `chunked`: the chunked kernel beside the exact one where both fit, forward and training step. `growth`: a training step of
8 heads of 64 at lengths up to 65,536, each in a process of its own, with the most memory that it held beyond what the process had
before; a kernel's series ends where a step no longer fits the memory or would take too long.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common import REPOSITORY, Run, Timing, add_threads_argument, compare, core_count, emit, interleaved, timed

PARTS = ("step", "chunked", "growth")
KERNELS = ("exact", "chunked", "local", "linear", "keras")
KERAS = "keras.layers.MultiHeadAttention"
SIZES = ((768, 12), (512, 8))
LENGTHS = (197, 577, 1025)
GROWTH = (1024, 2048, 4096, 8192, 12288, 16384, 32768, 65536)
GROWTH_SIZE = (512, 8)
FIGURE = REPOSITORY / "docs" / "figures" / "attention_kernels.png"


class Point(NamedTuple):
    """A training step of one kernel at one length."""

    kernel: str
    length: int
    seconds: float
    bytes: int


def main(arguments: list[str] | None = None) -> None:
    """Measures what the arguments ask for and prints the lines."""
    options = read_arguments(arguments)
    if options.point:
        measure_point(options.point[0], int(options.point[1]), options)
        return
    if "growth" in options.parts:
        # First, while this process holds no memory itself.
        points: list[Point] = []
        for point in growth(options):
            points.append(point)
            print_point(point, points, options)
        if options.figure is not None:
            draw(points, options.figure)
    if options.parts != ["growth"]:
        use_threads(options.threads)
    if "step" in options.parts:
        training_steps(options)
    if "chunked" in options.parts:
        chunked_beside_exact(options)


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_threads_argument(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS), help="of growth")
    parser.add_argument("--max-length", type=int, default=GROWTH[-1], help="of growth")
    parser.add_argument("--batch-size", type=int, default=4, help="of step and chunked; growth has 1")
    parser.add_argument("--rounds", type=int, default=7, help="timed turns of each contestant")
    parser.add_argument("--time-limit", type=float, default=900.0, help="seconds that a step of growth may take")
    parser.add_argument(
        "--memory-limit", type=float, help="GiB that a step of growth may take; default nine tenths of what is free"
    )
    parser.add_argument("--figure", type=Path, help=f"where growth is drawn; default {FIGURE.relative_to(REPOSITORY)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, which show that it runs and nothing else")
    parser.add_argument("--point", nargs=2, metavar=("KERNEL", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.sizes, options.lengths, options.growth, options.growth_size = SIZES, LENGTHS, GROWTH, GROWTH_SIZE
    if options.quick:
        options.sizes, options.lengths, options.growth, options.growth_size = ((16, 2),), (17, 33), (64, 128), (16, 2)
        options.rounds, options.batch_size = min(options.rounds, 2), 1
    elif options.figure is None and options.point is None:
        options.figure = FIGURE
    options.growth = tuple(length for length in options.growth if length <= options.max_length)
    return options


def use_threads(threads: int | None) -> None:
    """Lets operators take so many threads; call it before TensorFlow computes."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


def attention_step(kernel: str, dim: int, num_heads: int, *, backward: bool = True) -> Callable[[Any], Any]:
    """A graph of tokens: the layer's output and, `backward`, the gradient of its square by input and weights."""
    import keras
    import tensorflow as tf

    from mmfusion.layers import Attention

    layer: Any
    if kernel == "keras":
        layer = keras.layers.MultiHeadAttention(num_heads, dim // num_heads)
        layer.build((None, None, dim), (None, None, dim))
        attend = lambda tokens: layer(tokens, tokens, training=backward)  # noqa: E731
    else:
        layer = Attention(num_heads=num_heads, kernel=kernel)
        layer.build((None, None, dim))
        attend = lambda tokens: layer(tokens, training=backward)  # noqa: E731

    @tf.function(autograph=False)
    def step(tokens: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(tokens)
            loss = tf.reduce_sum(tf.square(attend(tokens)))
        return [loss, *tape.gradient(loss, [tokens, *(x.value for x in layer.trainable_weights)])] if backward else [loss]

    return step


def turns(kernel: str, tokens: Any, num_heads: int, *, backward: bool = True) -> Run:
    """One step a turn."""
    step = attention_step(kernel, tokens.shape[-1], num_heads, backward=backward)
    return timed(lambda: float(step(tokens)[0]))


def training_steps(options: argparse.Namespace) -> None:
    """Ours beside Keras's layer."""
    import keras

    ratios = []
    for dim, num_heads in options.sizes:
        for length in options.lengths:
            tokens = keras.random.normal((options.batch_size, length, dim), seed=0)
            runs = {kernel: turns(kernel, tokens, num_heads) for kernel in ("exact", "keras")}
            timings = interleaved(runs, rounds=options.rounds, warmup=2)
            ratios.append(timings["keras"].wall / timings["exact"].wall)
            compare_tokens(
                f"attention.training_step.{dim}.{length}", timings, "exact", "keras", KERAS, tokens, num_heads, options
            )
    details = {"of": "attention.training_step.*", "lowest": min(ratios), "highest": max(ratios)}
    emit("attention.training_step.median", statistics.median(ratios), "times", peer=KERAS, peer_value=1.0, details=details)


def chunked_beside_exact(options: argparse.Namespace) -> None:
    """The chunked kernel beside the exact one where both fit."""
    import keras

    dim, num_heads = options.sizes[0]
    for length in (*options.lengths, 4 * options.lengths[-1]):
        tokens = keras.random.normal((1 if length > 2048 else options.batch_size, length, dim), seed=0)
        for part, backward in (("forward", False), ("training_step", True)):
            runs = {kernel: turns(kernel, tokens, num_heads, backward=backward) for kernel in ("chunked", "exact")}
            timings = interleaved(runs, rounds=options.rounds, warmup=2)
            name, peer_name = f"attention.chunked.{part}.{length}", "ours, kernel='exact'"
            compare_tokens(name, timings, "chunked", "exact", peer_name, tokens, num_heads, options)


def compare_tokens(
    name: str,
    timings: dict[str, Timing],
    ours: str,
    peer: str,
    peer_name: str,
    tokens: Any,
    num_heads: int,
    options: argparse.Namespace,
) -> None:
    """Prints the line of one comparison, in tokens a second."""
    batch, length, dim = tokens.shape
    details = {"batch_size": batch, "tokens": length, "dim": dim, "num_heads": num_heads, "dtype": "float32"}
    compare(
        name, timings, ours, peer, units=batch * length, unit="tokens/s", peer_name=peer_name,
        details={**details, "graph": "tf.function, no XLA", "threads": options.threads or core_count()},
    )  # fmt: skip


def growth(options: argparse.Namespace) -> Iterator[Point]:
    """The points that fit, each measured in a process of its own; Keras's, which the others stand beside, come first."""
    for kernel in sorted(options.kernels, key=lambda kernel: kernel != "keras"):
        last: Point | None = None
        for length in options.growth:
            power = 1 if kernel in ("local", "linear") else 2
            if last is not None and last.seconds * (length / last.length) ** power > options.time_limit:
                print(f"{kernel} ends at {last.length} tokens: {length} would take too long", file=sys.stderr)
                break
            last = run_point(kernel, length, options)
            if last is None:
                break
            yield last


def run_point(kernel: str, length: int, options: argparse.Namespace) -> Point | None:
    """The point, or None, with a message, where it does not fit."""
    command = [sys.executable, __file__, "--point", kernel, str(length)]
    command += ["--quick"] if options.quick else []
    for name in ("threads", "memory_limit"):
        value = getattr(options, name)
        command += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3 * options.time_limit + 120)
    except subprocess.TimeoutExpired:
        print(f"{kernel} ends before {length} tokens: it took too long", file=sys.stderr)
        return None
    if result.returncode:
        reason = [line for line in result.stderr.splitlines() if "Error" in line or "OOM" in line or "alloc" in line]
        print(f"{kernel} ends before {length} tokens: {(reason or ['killed'])[-1].strip()[:200]}", file=sys.stderr)
        return None
    return Point(kernel, length, **json.loads(result.stdout.splitlines()[-1]))


def measure_point(kernel: str, length: int, options: argparse.Namespace) -> None:
    """Prints seconds of a step and the bytes that it held beyond what the process had before."""
    use_threads(options.threads)
    import keras

    dim, num_heads = options.growth_size
    step = attention_step(kernel, dim, num_heads)
    # A first trace, and threads and pools of memory that any step needs, are of the process.
    float(step(keras.random.normal((1, 16, dim), seed=0))[0])
    limit_memory(options.memory_limit)
    before = memory("VmRSS")
    forget_peak()
    tokens = keras.random.normal((1, length, dim), seed=0)
    function = step.get_concrete_function(tokens)  # type: ignore[attr-defined]
    seconds: list[float] = []
    # A long step needs no warm-up, and no second.
    while not seconds or (sum(seconds) < 5.0 and len(seconds) < 6):
        start = time.perf_counter()
        float(function(tokens)[0])
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": statistics.median(seconds[1:] or seconds), "bytes": max(memory("VmHWM") - before, 1)}))


def limit_memory(gigabytes: float | None) -> None:
    """From here on an allocation beyond the limit fails, instead of the machine."""
    import resource

    free = int(gigabytes * 2**30) if gigabytes else int(0.9 * memory("MemAvailable", "/proc/meminfo"))
    limit = memory("VmData") + free
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def memory(name: str, path: str = "/proc/self/status") -> int:
    """Bytes that Linux reports under a name."""
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{path} has no {name}: this part needs Linux")


def forget_peak() -> None:
    """Sets the peak of resident memory to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def print_point(point: Point, points: list[Point], options: argparse.Namespace) -> None:
    """A line of time and one of memory, and what a kernel needs beside Keras's longest; `points` are those so far."""
    dim, num_heads = options.growth_size
    peers = {other.length: other for other in points if other.kernel == "keras"} if point.kernel != "keras" else {}
    peer = peers.get(point.length)
    details = {"tokens": point.length, "batch_size": 1, "dim": dim, "num_heads": num_heads, "dtype": "float32"}
    details |= {"threads": options.threads or core_count()}
    if peer is None and point.kernel != "keras":
        details["no_peer"] = f"{KERAS} was not measured at this length, or did not fit"
    name, peer_name = f"attention.growth.{point.kernel}.{point.length}", None if peer is None else KERAS
    speed, peer_speed = point.length / point.seconds, None if peer is None else peer.length / peer.seconds
    emit(f"{name}.time", speed, "tokens/s", peer=peer_name, peer_value=peer_speed, details=details)
    held = None if peer is None else peer.bytes / 2**20
    emit(f"{name}.memory", point.bytes / 2**20, "MiB", peer=peer_name, peer_value=held, details=details, less_is_better=True)
    longest = peers[max(peers)] if peers else None
    if longest is not None and point.length >= longest.length and point.length in (16384, options.growth[-1]):
        emit(
            f"{name}.memory_beside_the_longest",
            point.bytes / 2**20,
            "MiB",
            peer=f"{KERAS} at {longest.length} tokens, the longest that ran",
            peer_value=longest.bytes / 2**20,
            less_is_better=True,
        )


def draw(points: list[Point], path: Path) -> None:
    """Time and memory against length, both logarithmic."""
    from matplotlib.figure import Figure

    from mmfusion.evaluation.drawing import INK, QUIET, SERIES

    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, label in zip(panels, ("seconds a training step", "MiB beyond the process"), strict=True):
        for kernel, color in zip(KERNELS, SERIES, strict=True):
            own = [point for point in points if point.kernel == kernel]
            if not own:
                continue
            values = [point.seconds if axes is panels[0] else point.bytes / 2**20 for point in own]
            name, style = ("Keras's layer", "--") if kernel == "keras" else (kernel, "-")
            axes.plot([point.length for point in own], values, style, color=color, marker="o", markersize=3.5, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("tokens", size=9, color=QUIET)
        axes.set_ylabel(label, size=9, color=QUIET)
        axes.grid(True, which="major", color="#d0d7de", linewidth=0.5)
        axes.tick_params(which="both", labelsize=8, colors=QUIET, length=0)
        axes.spines[:].set_visible(False)
    panels[0].legend(fontsize=8, frameon=False, labelcolor=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    main()
