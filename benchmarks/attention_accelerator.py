"""Attention on a GPU, through JAX: ours beside `keras.layers.MultiHeadAttention` with and without its flash kernel.

    python benchmarks/attention_accelerator.py
    JAX_PLATFORMS=cpu python benchmarks/attention_accelerator.py --quick

A step is forward and the gradient of input and weights, compiled, in turns with the peer's; at each length the batch has as many
tokens. `layer`: kernel="exact", which is JAX's fused attention (cuDNN's flash kernel in bfloat16), and kernel="chunked" (the same
kernel in bfloat16, our tiles in float32). `kernel`: the formula, our tiles and the fused attention by themselves, on heads that
are already there. Memory is what XLA says that the compiled step takes beside its arguments and results. TensorFlow is not
imported.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ["KERAS_BACKEND"] = "jax"

from common import Timing, compare, emit, interleaved, processor_description, timed

KERAS = "keras.layers.MultiHeadAttention"
HEAD_DIM = 64


class Step(NamedTuple):
    """A compiled step with its arguments.

    Attributes:
        run: Does it once and waits.
        bytes: What it takes beside arguments and results.
    """

    run: Callable[[], Any]
    bytes: int


def main(arguments: list[str] | None = None) -> None:
    """Measures what the arguments ask for and prints the lines."""
    options = read_arguments(arguments)
    for precision in options.precision:
        for length in options.lengths:
            if time.monotonic() > options.end:
                print(f"left out: {precision} from {length} tokens on, for want of time", file=sys.stderr)
                break
            measure_layers(precision, length, options)
    for precision in options.precision:
        if time.monotonic() < options.end:
            measure_kernels(precision, options.lengths[len(options.lengths) // 2], options)


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[577, 1024, 4096, 16384])
    parser.add_argument("--tokens", type=int, default=16384, help="of a batch")
    parser.add_argument("--num-heads", type=int, default=8, help=f"of {HEAD_DIM}")
    parser.add_argument("--precision", nargs="+", choices=("float32", "bfloat16"), default=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=10, help="timed turns of each contestant")
    parser.add_argument("--time-limit", type=float, default=150.0, help="seconds after which no further comparison starts")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, which show that it runs and nothing else")
    options = parser.parse_args(arguments)
    if options.quick:
        options.lengths, options.tokens, options.num_heads, options.rounds = [16, 24], 48, 2, 2
    options.end = time.monotonic() + options.time_limit
    return options


def measure_layers(precision: str, length: int, options: argparse.Namespace) -> None:
    """Our layer's kernels beside Keras's layer."""
    import keras

    from mmfusion.layers import Attention

    batch, dim, heads = max(options.tokens // length, 1), options.num_heads * HEAD_DIM, options.num_heads
    dtype = "mixed_bfloat16" if precision == "bfloat16" else "float32"
    layers: dict[str, Any] = {
        kernel: Attention(num_heads=heads, kernel=kernel, dtype=dtype, name=kernel) for kernel in ("exact", "chunked")
    }
    for name, flash in (("keras", False), ("keras_flash", True)):
        layers[name] = keras.layers.MultiHeadAttention(heads, HEAD_DIM, flash_attention=flash, dtype=dtype, name=name)
    tokens = keras.random.normal((batch, length, dim), seed=0)
    steps = {}
    for name, layer in layers.items():
        layer.build(tokens.shape, tokens.shape) if name.startswith("keras") else layer.build(tokens.shape)
        step = compiled(
            name, layer_loss(layer, twice=name.startswith("keras")), [x.value for x in layer.trainable_variables], tokens
        )
        if step is not None:
            steps[name] = step
    details = {"dim": dim, "num_heads": heads, "dtype": dtype}
    pairs = [(ours, peer) for ours in ("exact", "chunked") for peer in ("keras", "keras_flash")]
    names = {"keras": f"{KERAS}, flash_attention=False", "keras_flash": f"{KERAS}, flash_attention=True"}
    report(f"attention.{precision}.layer", steps, pairs, names, batch, length, details, options.rounds)


def measure_kernels(precision: str, length: int, options: argparse.Namespace) -> None:
    """Formula, tiles and the fused attention on heads that are already there."""
    import keras
    from keras import ops

    from mmfusion.layers.kernels import attention_weights
    from mmfusion.layers.kernels.fused import fused_attention
    from mmfusion.layers.kernels.tiled import tiled_attention
    from mmfusion.layers.kernels.tiling import Tile

    batch = max(options.tokens // length, 1)
    shape = (batch, options.num_heads, length, HEAD_DIM)
    query, key, value = (keras.random.normal(shape, dtype=precision, seed=seed) for seed in range(3))

    def formula(q: Any, k: Any, v: Any) -> Any:
        return ops.matmul(ops.cast(attention_weights(q, k), v.dtype), v)

    def tiles(q: Any, k: Any, v: Any) -> Any:
        return tiled_attention(q, k, v, None, Tile.of(q, k, 1024, 1024))

    steps = {}
    for name, kernel in {"tiles": tiles, "fused": fused_attention, "formula": formula}.items():
        step = compiled(name, lambda kv, q, kernel=kernel: square(kernel(q, *kv)), [key, value], query)
        if step is not None:
            steps[name] = step
    pairs = [("tiles", "formula"), ("fused", "formula")]
    details = {"num_heads": options.num_heads, "head_dim": HEAD_DIM, "dtype": precision}
    names = {"formula": "softmax(Q Kᵀ) V by XLA"}
    report(f"attention.{precision}.kernel", steps, pairs, names, batch, length, details, options.rounds)


def layer_loss(layer: Any, *, twice: bool) -> Callable[[Any, Any], Any]:
    """The sum of squares of a layer's output as a function of its weights and of tokens."""
    others = [x.value for x in layer.non_trainable_variables]

    def loss(weights: Any, tokens: Any) -> Any:
        given = (tokens, tokens) if twice else (tokens,)
        return square(layer.stateless_call(weights, others, *given)[0])

    return loss


def square(x: Any) -> Any:
    """The sum of squares, in float32."""
    from keras import ops

    return ops.sum(ops.square(ops.cast(x, "float32")))


def compiled(name: str, loss: Callable[[Any, Any], Any], *arguments: Any) -> Step | None:
    """The compiled step, or None, with a message, where it does not run here."""
    import jax

    try:
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile()
        jax.block_until_ready(step(*arguments))
    except Exception as error:
        print(f"left out: {name} does not run here: {(str(error).splitlines() or [repr(error)])[0][:200]}", file=sys.stderr)
        return None
    return Step(lambda: jax.block_until_ready(step(*arguments)), step.memory_analysis().temp_size_in_bytes)


def report(
    prefix: str,
    steps: dict[str, Step],
    pairs: list[tuple[str, str]],
    names: dict[str, str],
    batch: int,
    length: int,
    details: dict[str, Any],
    rounds: int,
) -> None:
    """Lets all take turns; prints a line of time and one of memory for each pair."""
    timings: dict[str, Timing] = interleaved({name: timed(step.run) for name, step in steps.items()}, rounds=rounds, warmup=2)
    details = {"batch_size": batch, "tokens": length, **details}
    for ours, peer in pairs:
        if ours not in steps or peer not in steps:
            continue
        name, peer_name = f"{prefix}.{ours}.{length}.vs_{peer}", names[peer]
        compare(
            f"{name}.time", timings, ours, peer, units=batch * length, unit="tokens/s", peer_name=peer_name, details=details,
            device=device(),
        )  # fmt: skip
        own, their = (max(steps[x].bytes, 1) / 2**20 for x in (ours, peer))
        emit(
            f"{name}.memory", own, "MiB", peer=peer_name, peer_value=their, details=details, device=device(), less_is_better=True
        )


def device() -> str:
    """What JAX computes on."""
    import jax

    found = jax.devices()[0]
    return f"{processor_description()}; {found.device_kind}" if found.platform != "cpu" else processor_description()


if __name__ == "__main__":
    main()
    assert "tensorflow" not in sys.modules, "something imported TensorFlow"
