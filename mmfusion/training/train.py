"""A recipe into a run folder: the whole training, resumed where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from rich.console import Console

from mmfusion.config import CAPTION_FIGURES
from mmfusion.data import Quarantine, Source, Transform, build_train_dataset, steps_per_epoch
from mmfusion.errors import ConfigError
from mmfusion.evaluation.evaluator import Evaluator
from mmfusion.evaluation.figures import draw_learning_curves
from mmfusion.models import ImageTextModel
from mmfusion.text import WordPieceTokenizer
from mmfusion.training.callbacks import Checkpointing, JsonLinesLog, LossRecovery, ProgressBar, Validation, save_model
from mmfusion.training.checkpoints import Checkpoints
from mmfusion.training.diagnosing import build_diagnostics
from mmfusion.training.experiment import image_transform, prepare_model, prepare_source, prepare_tokenizer
from mmfusion.training.freezing import freeze
from mmfusion.training.momentum_teacher import MomentumTeacher
from mmfusion.training.objectives import build_objectives
from mmfusion.training.optimization import build_optimizer
from mmfusion.training.run_folder import RunFolder
from mmfusion.training.stop_signals import StopSignals
from mmfusion.training.strategy import build_strategy
from mmfusion.training.trainer import Trainer

if TYPE_CHECKING:
    from mmfusion.config import Recipe


@dataclass(frozen=True)
class TrainResult:
    """How a training ended.

    Attributes:
        folder: The run folder.
        step: Steps done in all.
        best: The best value of the monitored figure.
        best_epoch: The epoch (from 0) of the best model.
        monitor: The monitored figure.
        seconds: Time of this call.
        skipped: Bad examples that were skipped.
    """

    folder: RunFolder
    step: int
    best: float | None
    best_epoch: int | None
    monitor: str
    seconds: float
    skipped: int


def train(recipe: Recipe, folder: str | Path) -> TrainResult:
    """Trains a recipe; called again with the same folder, it continues where it was.

    Args:
        recipe: What to train, on what, how.
        folder: The run folder; see `RunFolder` for what is in it.

    Returns:
        The `TrainResult`.

    Raises:
        ConfigError: If the folder holds another recipe's run.
        DataError: If too many examples are bad, or the loss is no longer finite.
        CheckpointError: If a checkpoint cannot be written.
        KeyboardInterrupt: At SIGINT (Ctrl-C) or SIGTERM, after the step and with a checkpoint; at a second one, at once.
    """
    started = time.monotonic()
    run = RunFolder(folder)
    run.start(recipe)
    keras.utils.set_random_seed(recipe.seed)
    console = Console(stderr=True)

    source = prepare_source(recipe)
    tokenizer = prepare_tokenizer(recipe, source, run.vocabulary)
    transform = image_transform(recipe)
    data, options = recipe.data, recipe.train
    examples = source.splits[data.train_split]
    epoch_steps = steps_per_epoch(source, data.train_split, options.batch_size, captions=data.captions)
    if epoch_steps < 1:
        raise ConfigError(
            "a batch is larger than the training split",
            where="train.batch_size",
            expected=f"at most {len(examples)}",
            found=options.batch_size,
        )
    strategy = build_strategy(options.strategy, options.devices, batch_size=options.batch_size)
    with strategy.scope():
        model = prepare_model(recipe, tokenizer)
        # Before the momentum copy is made and the optimizer is built: neither is to follow what stays as it is.
        freeze(model, options.freeze)
        trainer = Trainer(
            model,
            build_objectives(recipe, tokenizer),
            clip_norm=options.clip_norm,
            teacher=_teacher(recipe, model, epoch_steps * options.epochs),
        )
        optimizer = build_optimizer(
            model.trainable_variables,
            steps=epoch_steps * options.epochs,
            learning_rate=options.learning_rate,
            warmup=options.warmup,
            weight_decay=options.weight_decay,
            beta_2=options.beta_2,
            adjustable=options.recovery is not None and options.recovery.rate_factor < 1.0,
        )
        trainer.compile(optimizer=optimizer, jit_compile=options.jit_compile)

    def variables() -> list[keras.Variable]:
        return [*trainer.variables, *optimizer.variables]

    checkpoints = Checkpoints(run.checkpoints, keep=options.keep)
    progress = checkpoints.restore(variables()) or {"step": 0}
    step = progress["step"]
    console.print(_summary(model, source, recipe, epoch_steps, step), highlight=False, soft_wrap=True)

    quarantine = Quarantine(run.quarantine, total=len(examples), max_share=data.max_bad_share)
    for bad in source.bad_rows:
        quarantine.record(bad.name, bad.reason)

    def batches(start_step: int) -> tf.data.Dataset:
        return build_train_dataset(
            source,
            data.train_split,
            tokenizer=tokenizer,
            transform=transform,
            batch_size=options.batch_size,
            augment=data.augment,
            seed=recipe.seed,
            start_step=start_step,
            quarantine=quarantine,
            cache=data.cache,
            captions=data.captions,
        )

    validation = Validation(
        validator(recipe, trainer, source, tokenizer, transform),
        model,
        run.best_model,
        monitor=options.monitor,
        epochs=options.epochs,
        every=options.validate_every,
        patience=options.patience,
        state=progress.get("validation"),
    )
    stop = StopSignals()
    bar = ProgressBar(total_steps=epoch_steps * options.epochs, epochs=options.epochs, start_step=step)
    log = JsonLinesLog(run.train_log, start_step=step)
    recovery = _recovery(recipe, log, console, step, progress.get("recovery"))
    diagnostics = build_diagnostics(recipe, trainer, source, tokenizer, transform, run, log.write)
    callbacks = [
        *([recovery] if recovery else []),
        validation,
        log,
        *([diagnostics] if diagnostics else []),
        *([keras.callbacks.TensorBoard(run.tensorboard, write_graph=False)] if options.tensorboard else []),
        bar,
        Checkpointing(
            checkpoints,
            variables,
            steps_per_epoch=epoch_steps,
            start_step=step,
            every=options.checkpoint_every,
            minutes=options.checkpoint_minutes,
            stop_requested=lambda: stop.requested,
            progress=lambda: {
                "validation": validation.state,
                "stopped": trainer.stop_training,
                "means": trainer.running_means(),
                "recovery": recovery and recovery.state,
            },
        ),
    ]
    if step % epoch_steps:
        trainer.continue_means(progress.get("means"))
    try:
        if not progress.get("stopped"):
            with stop:
                _fit(trainer, batches, callbacks, step, epoch_steps, options.epochs)
    except Exception as error:
        # tf.data wraps what its functions raise: the quarantine remembers the clear error.
        raise quarantine.error or error from error
    finally:
        bar.close()
    if not run.best_model.is_file():
        save_model(model, run.best_model)
    draw_learning_curves(run.train_log, run.figures / "learning_curves.png")
    return TrainResult(
        run,
        int(optimizer.iterations.numpy()),
        validation.state["best"],
        validation.state["best_epoch"],
        options.monitor,
        time.monotonic() - started,
        quarantine.count,
    )


def validator(recipe: Recipe, trainer: Trainer, source: Source, tokenizer: WordPieceTokenizer, transform: Transform) -> Any:
    """A function that says the figures of the validation split, named ``val_…``."""
    model: ImageTextModel = trainer.model
    evaluator = Evaluator(
        model,
        source=source,
        split=recipe.data.validation_split,
        tokenizer=tokenizer,
        transform=transform,
        batch_size=recipe.train.batch_size,
        limit=recipe.train.validation_images,
    )

    def validate() -> dict[str, float]:
        figures = evaluator.losses(lambda batch: trainer.compute_losses(batch, training=False)[1])
        if "contrastive" in model.heads:
            figures.update(evaluator.retrieval())
        if recipe.train.monitor in CAPTION_FIGURES:
            figures.update(evaluator.captions(limit=recipe.evaluation.caption_images).metrics)
        return {f"val_{name}": value for name, value in figures.items()}

    return validate


def _teacher(recipe: Recipe, model: ImageTextModel, steps: int) -> MomentumTeacher | None:
    momentum = recipe.objective.momentum
    if momentum is None:
        return None
    return MomentumTeacher(
        model,
        decay=momentum.decay,
        queue_size=momentum.queue_size,
        alpha=momentum.alpha,
        warmup_steps=round(momentum.warmup * steps),
    )


def _recovery(
    recipe: Recipe, log: JsonLinesLog, console: Console, step: int, state: dict[str, Any] | None
) -> LossRecovery | None:
    options = recipe.train.recovery
    if options is None:
        return None

    def tell(kind: str, event: dict[str, Any]) -> None:
        log.write(kind, event)
        back = f"went back {event['restored_steps_back']} steps and left their batches out"
        console.print(
            f"step {event['step']}: {event['reason']}; {back} (recovery {event['recoveries']})", highlight=False, soft_wrap=True
        )

    return LossRecovery(**options.model_dump(), start_step=step, log=tell, state=state)


def _fit(
    trainer: Trainer,
    batches: Callable[[int], tf.data.Dataset],
    callbacks: list[keras.callbacks.Callback],
    step: int,
    epoch_steps: int,
    epochs: int,
) -> None:
    # Keras counts whole epochs: the rest of a broken one is a fit of its own.
    broken = step % epoch_steps
    while step < epoch_steps * epochs and not trainer.stop_training:
        epoch = step // epoch_steps
        last = epoch + 1 if broken else epochs
        trainer.fit(
            batches(step),
            initial_epoch=epoch,
            epochs=last,
            steps_per_epoch=epoch_steps - broken,
            callbacks=callbacks,
            shuffle=False,
            verbose=0,
        )
        step, broken = last * epoch_steps, 0


def _summary(model: ImageTextModel, source: Source, recipe: Recipe, epoch_steps: int, step: int) -> str:
    data = recipe.data
    line = (
        f"{recipe.name}: {model.count_params():,} parameters, {', '.join(model.heads)}; {source.name}: "
        f"{len(source.splits[data.train_split]):,} training and {len(source.splits[data.validation_split]):,} validation "
        f"images; {recipe.train.epochs} epochs of {epoch_steps} steps of {recipe.train.batch_size}"
    )
    return line + (f"; continuing after step {step}" if step else "")
