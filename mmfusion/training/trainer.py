"""Keras's `fit` around a model and its objectives, right under `tf.distribute`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from mmfusion.errors import ConfigError
from mmfusion.models import ImageTextModel
from mmfusion.training.forward_pass import ForwardPass
from mmfusion.training.momentum_teacher import MomentumTeacher
from mmfusion.training.objectives import Objective
from mmfusion.training.replicas import replica_count, separate_seeds, sum_across


class Trainer(keras.Model):
    """Trains a model by objectives with `compile` and `fit`; owns no weights of its own but metrics.

    The loss is ``sum over objectives of weight · (sum of totals / sum of counts)``, both sums over all replicas, so that loss
    and gradient on N replicas equal those of one replica on the same global batch (dropout aside: each replica draws its
    own). Gradients are summed over the replicas first and clipped afterwards (Keras's own `global_clipnorm` clips before).

    Args:
        model: The model; create both under ``strategy.scope()``.
        objectives: The terms of the loss.
        clip_norm: Largest global norm of the gradient; None does not clip. Default None.
        teacher: A momentum copy of the model to learn from; made under the same scope. Default: none.

    Raises:
        ConfigError: If there is no objective, or two have one name.

    Example:
        >>> import keras, numpy as np, tensorflow as tf
        >>> from mmfusion.encoders import TextTransformer, VisionTransformer
        >>> from mmfusion.models import ContrastiveHead, ImageTextModel
        >>> from mmfusion.training import Trainer
        >>> from mmfusion.training.objectives import ContrastiveObjective
        >>> model = ImageTextModel(
        ...     image_encoder=VisionTransformer(image_size=8, patch_size=8, dim=8, depth=1, num_heads=1),
        ...     text_encoder=TextTransformer(vocabulary_size=9, max_length=4, dim=8, depth=1, num_heads=1),
        ...     contrastive_head=ContrastiveHead(embedding_dim=4),
        ... )
        >>> trainer = Trainer(model, [ContrastiveObjective()], clip_norm=1.0)
        >>> trainer.compile(optimizer=keras.optimizers.AdamW(1e-3))
        >>> batch = {"image": np.random.rand(4, 8, 8, 3).astype("float32"), "token_ids": np.ones((4, 4), "int32"),
        ...          "token_mask": np.ones((4, 4), bool), "image_id": np.arange(4)}
        >>> history = trainer.fit(tf.data.Dataset.from_tensors(batch), verbose=0)
        >>> sorted(history.history)
        ['contrastive_accuracy', 'contrastive_loss', 'gradient_norm', 'loss']
    """

    def __init__(
        self,
        model: ImageTextModel,
        objectives: Sequence[Objective],
        *,
        clip_norm: float | None = None,
        teacher: MomentumTeacher | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        names = [objective.name for objective in objectives]
        if not names or len(set(names)) != len(names):
            raise ConfigError("training needs objectives of different names", where="objectives", found=names)
        self.model = model
        self.train_function: Any = None
        self.test_function: Any = None
        self.objectives = list(objectives)
        self.clip_norm = clip_norm
        self.teacher = teacher
        # Keras tracks what stands in an attribute: so the state of the drawing is saved with the checkpoints.
        self.seed_generators = [objective.seed_generator for objective in objectives if hasattr(objective, "seed_generator")]
        self._running: tf.Tensor | None = None
        self._carried: tf.Tensor | None = None
        self._before: tf.Tensor | None = None
        #: The figures of the last step of training or evaluation alone, by name.
        self.step_figures: dict[str, tf.Tensor] = {}
        self.built = True

    def call(self, inputs: dict[str, tf.Tensor], training: bool | None = None) -> dict[str, tf.Tensor]:
        """The model's own outputs."""
        return self.model(inputs, training=training)

    def reset_metrics(self) -> None:
        """Starts the running means anew; Keras does it at each epoch. After `continue_means`, once, with those."""
        self._running, self._carried = self._carried, None

    def running_means(self) -> list[list[float]] | None:
        """The sums and counts behind this epoch's figures so far, as JSON knows them, or None before its first step."""
        return None if self._running is None else self._running.numpy().tolist()

    def continue_means(self, sums: list[list[float]] | None) -> None:
        """Makes the next epoch go on with what `running_means` said, as a resumed half epoch must."""
        self._carried = None if sums is None else tf.constant(sums, tf.float32)

    def forget_step(self) -> dict[str, float]:
        """Takes the last step out of the running means, and says the means without it (none after an epoch's first step)."""
        self._running = self._before
        if self._running is None:
            return {}
        return {name: float(total / count) for name, (total, count) in zip(self.step_figures, self._running, strict=True)}

    def compute_losses(
        self, batch: dict[str, tf.Tensor], *, training: bool
    ) -> tuple[tf.Tensor, dict[str, tuple[tf.Tensor, tf.Tensor]]]:
        """This replica's part of the global loss, and every figure as global (mean, count).

        Args:
            batch: This replica's rows, as the data pipeline gives them.
            training: Whether dropout is active.

        Returns:
            ``float32[]`` whose sum over the replicas is the loss, and the figures by name.
        """
        return self._losses_of(ForwardPass(self.model, batch, training=training, teacher=self.teacher))

    def _losses_of(self, forward: ForwardPass) -> tuple[tf.Tensor, dict[str, tuple[tf.Tensor, tf.Tensor]]]:
        outputs = {objective.name: objective(forward) for objective in self.objectives}
        shares = {f"{name}_loss": output.loss for name, output in outputs.items()}
        for output in outputs.values():
            shares.update(output.metrics)
        names = list(shares)
        reduced = sum_across(
            [tf.stop_gradient(shares[name].total) for name in names] + [tf.stop_gradient(shares[name].count) for name in names]
        )
        totals = dict(zip(names, reduced[: len(names)], strict=True))
        counts = {name: tf.maximum(count, 1.0) for name, count in zip(names, reduced[len(names) :], strict=True)}
        local_loss = tf.add_n(
            [
                objective.weight * outputs[objective.name].loss.total / counts[f"{objective.name}_loss"]
                for objective in self.objectives
            ]
        )
        figures = {name: (totals[name] / counts[name], counts[name]) for name in names}
        loss = tf.add_n([objective.weight * figures[f"{objective.name}_loss"][0] for objective in self.objectives])
        rows = tf.cast(tf.shape(forward.batch["image_id"])[0] * replica_count(), tf.float32)
        return local_loss, {"loss": (loss, rows), **figures}

    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        """One update, seen from one replica; figures as global (mean, count)."""
        weights = [weight.value for weight in self.model.trainable_weights]
        forward = ForwardPass(self.model, batch, training=True, teacher=self.teacher)
        with tf.GradientTape() as tape:
            loss, figures = self._losses_of(forward)
        gradients = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients = sum_across([tf.convert_to_tensor(gradient) for gradient in gradients])
        norm = tf.linalg.global_norm(gradients)
        if self.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm, use_norm=norm)
        # Keras's optimizers sum over the replicas once more; these are sums already.
        gradients = [gradient / replica_count() for gradient in gradients]
        self.optimizer.apply(gradients, self.model.trainable_weights)
        if self.teacher is not None:
            if self.model.contrastive_head is not None:
                self.teacher.enqueue(*forward.momentum_features[:3])
            self.teacher.update()
        return {**figures, "gradient_norm": (norm, tf.ones(()))}

    def test_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        """One batch of evaluation, seen from one replica; figures as global (mean, count)."""
        return self.compute_losses(batch, training=False)[1]

    def make_train_function(self, force: bool = False) -> None:
        """Keras's documented extension point: own loop body, since Keras's fails on some strategies."""
        if self.distribute_strategy.num_replicas_in_sync > 1:
            separate_seeds(self.distribute_strategy, self.model)
        if self.train_function is None or force:
            self.train_function = self._on_strategy(self.train_step)

    def make_test_function(self, force: bool = False) -> None:
        """As `make_train_function`, for evaluation."""
        if self.test_function is None or force:
            self.test_function = self._on_strategy(self.test_step)

    def _on_strategy(self, step: Callable[..., Any]) -> Callable[[Any], dict[str, tf.Tensor]]:
        @tf.autograph.experimental.do_not_convert
        def on_batch(batch: Any, running: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor, dict[str, tf.Tensor]]:
            strategy = self.distribute_strategy
            per_replica = strategy.run(step, args=(batch,))
            # Every replica holds the same global figures already.
            figures = {
                name: tuple(strategy.experimental_local_results(part)[0] for part in pair) for name, pair in per_replica.items()
            }
            # Carried through and not kept in variables: Keras's metrics count an N-fold batch under N replicas.
            running += tf.stack([[value * count, count] for value, count in figures.values()])
            means = {name: running[row, 0] / running[row, 1] for row, name in enumerate(figures)}
            return means, running, {name: value for name, (value, _) in figures.items()}

        if not self.run_eagerly:
            on_batch = tf.function(on_batch, reduce_retracing=True, jit_compile=self.jit_compile is True)
        rows = 1 + sum(len(objective.figures) for objective in self.objectives) + (step == self.train_step)

        def on_iterator(iterator: Any) -> dict[str, tf.Tensor]:
            try:
                batch = next(iterator)
            except tf.errors.OutOfRangeError as error:
                raise StopIteration from error
            running = tf.zeros((rows, 2)) if self._running is None else self._running
            self._before = self._running
            means, self._running, self.step_figures = on_batch(batch, running)
            return means

        return on_iterator

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # The model is built in its constructor; Keras's own way fails on distributed batches and eats one of them.
        if not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.model.trainable_variables)
