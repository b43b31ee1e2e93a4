"""What the benchmarks share: lines of JSON, fair timing, the device, and peers that may not be installed.

A figure is fair here when ours and the peer take turns (ours, peer, ours, peer, ...), after a warm-up, on the same inputs, and
the median over the rounds is what counts. A busy machine does not slow both alike: torch's OpenMP threads wait for each other
after every operator, TensorFlow's do not. So each line says how busy the machine was, and what the ratio of processor time is;
with `--threads 1` both can be trusted on a busy machine too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

# Before TensorFlow is imported: what it says of its build is no result.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

if TYPE_CHECKING:
    import numpy as np

    from mmfusion.config import Recipe

KEYS = ("name", "value", "unit", "peer", "peer_value", "ratio", "device", "details")
"""The keys of every line."""

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE = REPOSITORY / "configs" / "flickr8k_scratch.yaml"
EXTRAS = 'pip install "mmfusion[parity,test]"'

Run = Callable[[], "Seconds"]
"""Does the work of one round and says how long it took."""


class Seconds(NamedTuple):
    """How long a round took.

    Attributes:
        wall: Seconds that passed.
        processor: Seconds of processor time, of all threads and worker processes together.
    """

    wall: float
    processor: float


@dataclass(frozen=True)
class Timing:
    """The rounds of one contestant."""

    rounds: tuple[Seconds, ...]

    @property
    def wall(self) -> float:
        """Seconds of the median round."""
        return statistics.median(seconds.wall for seconds in self.rounds)

    @property
    def processor(self) -> float:
        """Seconds of processor time of the median round."""
        return statistics.median(seconds.processor for seconds in self.rounds)


def now() -> Seconds:
    """The clocks of now, to take the difference of two."""
    return Seconds(time.perf_counter(), time.process_time() + sum(map(_processor_seconds, active_children())))


def between(start: Seconds, end: Seconds) -> Seconds:
    """What passed between two readings of the clocks."""
    return Seconds(end.wall - start.wall, end.processor - start.processor)


def _processor_seconds(process: BaseProcess) -> float:
    try:
        content = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    # proc(5): after the name in parentheses, fields 14 and 15 are user and system time in clock ticks.
    user, system = content.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def timed(work: Callable[[], Any]) -> Run:
    """A round that is all of `work`, which returns only when it is done."""

    def run() -> Seconds:
        start = now()
        work()
        return between(start, now())

    return run


def interleaved(runs: Mapping[str, Run], *, rounds: int, warmup: int = 1) -> dict[str, Timing]:
    """Lets all contestants take turns.

    Args:
        runs: The contestants by name.
        rounds: Timed turns of each.
        warmup: Turns of each before, which are not timed: they compile, trace and fill caches. Default 1.

    Returns:
        The `Timing` of each.
    """
    seconds: dict[str, list[Seconds]] = {name: [] for name in runs}
    for turn in range(warmup + rounds):
        for name, run in runs.items():
            taken = run()
            if turn >= warmup:
                seconds[name].append(taken)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def compare(
    name: str,
    timings: Mapping[str, Timing],
    ours: str,
    peer: str | None,
    *,
    units: int,
    unit: str,
    peer_name: str | None,
    details: Mapping[str, Any],
    device: str | None = None,
) -> None:
    """Prints the line of one of ours beside one peer, both as throughput.

    Args:
        name: Name of the figure.
        timings: What `interleaved` returned.
        ours: Our key in `timings`.
        peer: The peer's key in `timings`; None where there is no peer.
        units: Units of work in a round.
        unit: What they are, as in ``"images/s"``.
        peer_name: What to call the peer.
        details: Whatever else a reader needs to trust the figure.
        device: See `emit`.
    """
    own, their = timings[ours], None if peer is None else timings[peer]
    emit(
        name,
        units / own.wall,
        unit,
        peer=None if their is None else peer_name,
        peer_value=None if their is None else units / their.wall,
        details={**_spread(own, their), **details},
        device=device,
    )


def _spread(own: Timing, their: Timing | None) -> dict[str, Any]:
    """How far the rounds are apart, and the ratio of processor time, which a busy machine moves less."""
    rounds = len(own.rounds)
    if their is None:
        return {"rounds": rounds, "no_peer": f"it is not installed, or was not asked for: {EXTRAS}"}
    ratios = [theirs.wall / ours.wall for ours, theirs in zip(own.rounds, their.rounds, strict=True)]
    spread: dict[str, Any] = {"rounds": rounds, "ratio_range": [_rounded(min(ratios)), _rounded(max(ratios))]}
    if own.processor:
        spread["processor_time_ratio"] = _rounded(their.processor / own.processor)
    return spread


def emit(
    name: str,
    value: float,
    unit: str,
    *,
    peer: str | None = None,
    peer_value: float | None = None,
    details: Mapping[str, Any] | None = None,
    device: str | None = None,
    less_is_better: bool = False,
) -> None:
    """Prints one figure as a line of JSON.

    Args:
        name: Name of the figure.
        value: Ours.
        unit: Of what.
        peer: What to call the peer; None where there is none.
        peer_value: The peer's.
        details: Whatever else a reader needs to trust the figure.
        device: What it ran on. Default: what TensorFlow sees.
        less_is_better: Whether the ratio is the peer's over ours, for seconds or bytes. Default False.
    """
    ratio = None if not peer_value else peer_value / value if less_is_better else value / peer_value
    content = (
        name,
        _rounded(value),
        unit,
        peer,
        _rounded(peer_value),
        _rounded(ratio),
        device or device_description(),
        {**dict(details or {}), "load_average": load_average(), "versions": versions()},
    )
    print(json.dumps(dict(zip(KEYS, content, strict=True)), ensure_ascii=False), flush=True)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def peer_modules(*names: str) -> dict[str, Any] | None:
    """The modules of a peer, or None, with a message that says what to install.

    Args:
        *names: Names of modules, such as ``"torch"``.

    Returns:
        The modules by name.
    """
    modules = {}
    for name in names:
        try:
            modules[name] = importlib.import_module(name)
        except ImportError as error:
            print(f"no peer: {name} cannot be imported ({error}); its figures are null. {EXTRAS}", file=sys.stderr)
            return None
    return modules


def load_average() -> float | None:
    """Processes that wanted to run in the last minute, this one among them; more than there are cores is too many."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


@lru_cache
def versions() -> dict[str, str]:
    """Versions of what is being compared, of those that are imported."""
    names = ("mmfusion", "tensorflow", "keras", "jax", "torch", "tokenizers", "PIL")
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in names}
    return {"python": platform.python_version(), **{name: str(value) for name, value in found.items() if value}}


@lru_cache
def device_description() -> str:
    """The processor, the cores that this process may use, and the GPU that the runs are on."""
    parts = [processor_description()]
    if os.environ.get("KERAS_BACKEND") == "jax":
        import jax

        return "; ".join([*parts, *(device.device_kind for device in jax.devices() if device.platform != "cpu")])
    import tensorflow as tf

    for gpu in tf.config.get_visible_devices("GPU"):
        parts.append(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name))
    return "; ".join(parts)


def processor_description() -> str:
    """The processor, and the cores that this process may use."""
    return f"{_processor()}, {core_count()} cores"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_same_device(torch: Any | None, wanted: str, threads: int | None = None) -> str:
    """Puts TensorFlow and torch on the same device with as many threads; call it before either computes.

    Args:
        torch: The torch module, or None.
        wanted: ``"cpu"``, or ``"auto"``: the GPU where TensorFlow and torch (if it is there) both see one.
        threads: Threads of the processor that an operator may take; None leaves both their defaults.

    Returns:
        torch's name of the device: ``"cuda"`` or ``"cpu"``.
    """
    import tensorflow as tf

    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        if torch is not None:
            torch.set_num_threads(threads)
    gpus = tf.config.list_physical_devices("GPU")
    if wanted == "auto" and gpus and (torch is None or torch.cuda.is_available()):
        for gpu in gpus:
            # Else TensorFlow takes the whole memory, and torch has none.
            tf.config.experimental.set_memory_growth(gpu, True)
        tf.config.set_visible_devices(gpus[:1], "GPU")
        return "cuda"
    tf.config.set_visible_devices([], "GPU")
    return "cpu"


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which model and which sizes."""
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="the recipe whose sizes are measured")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="change it")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each contestant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto takes a GPU that both see")


def add_threads_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the argument that says how many threads both take."""
    parser.add_argument("--threads", type=int, help="threads of both; 1 where the machine does other work too")


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that is measured."""
    from mmfusion.config import load_recipe

    return load_recipe(path, overrides)


def refuse_other_settings(run: Path, recipe: Recipe) -> None:
    """Ends the script if a run that is there already was made by another recipe: its figures would pass for this one's.

    Args:
        run: The run folder.
        recipe: What is to be measured now.

    Raises:
        SystemExit: With the options that differ.
    """
    from mmfusion.config import changed_paths, load_recipe

    changed = changed_paths(load_recipe(run / "recipe.yaml"), recipe, free=("tune", "quick"))
    if changed:
        raise SystemExit(f"error: {run} was made with other settings ({', '.join(changed)}); name another --folder, or delete it")


def random_batch(recipe: Recipe, batch_size: int, seed: int) -> dict[str, np.ndarray]:
    """A batch as the data pipeline gives it, with noise for pictures and captions from 8 tokens to the longest."""
    import numpy as np

    random = np.random.default_rng(seed)
    length, vocabulary = recipe.text.max_tokens, recipe.text.vocabulary_size
    lengths = random.integers(min(8, length), length + 1, batch_size)
    mask = np.arange(length) < lengths[:, None]
    token_ids = np.where(mask, random.integers(FIRST_WORD, vocabulary, (batch_size, length)), PAD)
    token_ids[:, 0] = START
    token_ids[np.arange(batch_size), lengths - 1] = END
    return {
        "image": random.normal(size=(batch_size, *recipe.data.size, 3)).astype(np.float32),
        "token_ids": token_ids.astype(np.int32),
        "token_mask": mask,
        "image_id": np.arange(batch_size, dtype=np.int32),
    }


PAD, START, END, FIRST_WORD = 0, 2, 3, 5
"""Ids of special tokens, as `mmfusion.text.SPECIAL_TOKENS` orders them, and of the first that is none."""


def build_ours(recipe: Recipe, precision: str) -> Any:
    """Our model of the recipe, with fresh weights.

    Args:
        recipe: The recipe.
        precision: ``"float32"`` or ``"bfloat16"``.

    Returns:
        The `ImageTextModel`.
    """
    from mmfusion.models import build_model

    return build_model(
        recipe,
        vocabulary_size=recipe.text.vocabulary_size,
        start_id=START,
        end_id=END,
        pad_id=PAD,
        dtype="mixed_bfloat16" if precision == "bfloat16" else "float32",
    )
