"""One training step, samples/s: ours beside its twin in PyTorch.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --precision float32 bfloat16 --batch-size 64 --rounds 7
    python benchmarks/training_step.py --set data.image_size=64 --ours graph --peers eager

A step is: forward, the three losses with hard negatives, backward, clipping of the global norm, AdamW. Ours is the train function
that `mmfusion train` runs, which reports the accuracies too; the peer is the usual PyTorch loop, eager and through
`torch.compile`, in bfloat16 under `torch.autocast`. Both have the same architecture, parameters, batch and hyperparameters.
"""

from __future__ import annotations

import argparse
import itertools
import sys
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

OURS = ("graph", "xla")
PEERS = ("eager", "compiled")


def main(arguments: list[str] | None = None) -> None:
    """Measures what the arguments ask for and prints the lines."""
    options = read_arguments(arguments)
    recipe = read_recipe(options.recipe, options.overrides)
    torch = (peer_modules("torch") or {}).get("torch") if options.peers else None
    device = use_same_device(torch, options.device, options.threads)
    batch_size = options.batch_size or recipe.train.batch_size
    batch = random_batch(recipe, batch_size, options.seed)
    for precision in options.precision:
        measure(recipe, batch, precision, options, torch, device)


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_recipe_arguments(parser)
    add_threads_argument(parser)
    parser.add_argument("--batch-size", type=int, default=32, help="pairs a step; 0 takes the recipe's")
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    parser.add_argument("--precision", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--ours", nargs="+", choices=OURS, default=list(OURS))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    return parser.parse_args(arguments)


def measure(
    recipe: Recipe,
    batch: dict[str, np.ndarray],
    precision: str,
    options: argparse.Namespace,
    torch: Any | None,
    device: str,
) -> None:
    """Lets all variants of one precision take turns, and prints a line for each pair of ours and theirs."""
    runs: dict[str, Run] = {}
    for variant in options.ours:
        runs[variant] = our_steps(recipe, batch, precision, jit_compile=variant == "xla", steps=options.steps)
    for variant in options.peers if torch is not None else ():
        run = torch_steps(recipe, batch, precision, compiled=variant == "compiled", steps=options.steps, device=device)
        if works(variant, run):
            runs[variant] = run
    timings = interleaved(runs, rounds=options.rounds, warmup=2)
    peers = [variant for variant in options.peers if variant in runs] or [None]
    size = len(batch["image_id"])
    for variant, peer in itertools.product(options.ours, peers):
        compare(
            f"training_step.{precision}.{variant}" + (f".vs_{peer}" if peer else ""),
            timings,
            variant,
            peer,
            units=size * options.steps,
            unit="samples/s",
            peer_name=None if torch is None or peer is None else f"torch {torch.__version__} {peer}, same architecture",
            details={
                "batch_size": size,
                "steps_a_round": options.steps,
                "image_size": list(recipe.data.size),
                "max_tokens": recipe.text.max_tokens,
                "recipe": recipe.name,
                "threads": options.threads or core_count(),
                "ours_also": "three accuracies and running means",
            },
        )


def works(name: str, run: Run) -> bool:
    """Whether a peer's step runs here; `torch.compile` needs a C++ compiler."""
    try:
        run()
    except Exception as error:
        print(f"left out: the peer's {name} step fails here: {str(error).splitlines()[0]}", file=sys.stderr)
        return False
    return True


def our_steps(recipe: Recipe, batch: dict[str, np.ndarray], precision: str, *, jit_compile: bool, steps: int) -> Run:
    """The train function of `mmfusion.training.Trainer` on one batch again and again."""
    import keras
    import tensorflow as tf

    from mmfusion.training.objectives import build_objectives
    from mmfusion.training.optimization import build_optimizer
    from mmfusion.training.trainer import Trainer

    keras.utils.set_random_seed(recipe.seed)
    model = build_ours(recipe, precision)
    trainer = Trainer(model, build_objectives(recipe), clip_norm=recipe.train.clip_norm)
    optimizer = build_optimizer(
        model.trainable_variables,
        steps=10_000,
        learning_rate=recipe.train.learning_rate,
        warmup=recipe.train.warmup,
        weight_decay=recipe.train.weight_decay,
        beta_2=recipe.train.beta_2,
    )
    trainer.compile(optimizer=optimizer, jit_compile=jit_compile)
    trainer.make_train_function()
    # A list and not a dataset: what is measured is the step, not the pipeline.
    iterator = itertools.repeat({name: tf.constant(value) for name, value in batch.items()})

    def work() -> float:
        for _ in range(steps):
            figures = trainer.train_function(iterator)
        # Reading a figure waits for the device.
        return float(figures["loss"])

    return timed(work)


def torch_steps(recipe: Recipe, batch: dict[str, np.ndarray], precision: str, *, compiled: bool, steps: int, device: str) -> Run:
    """The usual PyTorch loop on one batch again and again."""
    import torch
    from torch_model import build_twin, compute_losses, torch_batch, weighted_sum

    torch.manual_seed(recipe.seed)
    model = build_twin(recipe, build_ours(recipe, "float32"), device).train()
    parameters = list(model.parameters())
    optimizer = torch_optimizer(recipe, model)
    tensors = torch_batch(batch, device)
    losses = torch.compile(compute_losses, dynamic=False) if compiled else compute_losses

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = weighted_sum(losses(model, tensors, recipe.objective), recipe.objective)
        loss.backward()
        if recipe.train.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, recipe.train.clip_norm)
        optimizer.step()
        return loss

    def work() -> float:
        for _ in range(steps):
            loss = step()
        return float(loss.detach())

    return timed(work)


def torch_optimizer(recipe: Recipe, model: Any) -> Any:
    """Fused AdamW that decays matrices alone, as ours."""
    import torch

    named = list(model.named_parameters())
    matrices = [value for name, value in named if value.ndim > 1 and "position" not in name]
    others = [value for name, value in named if value.ndim <= 1 or "position" in name]
    groups = [{"params": matrices, "weight_decay": recipe.train.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.train.learning_rate, betas=(0.9, recipe.train.beta_2), eps=1e-8, fused=True)


if __name__ == "__main__":
    main()
