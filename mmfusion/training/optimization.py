"""The optimizer: AdamW with warm-up and cosine decay, weight decay only where it belongs."""

from __future__ import annotations

import keras

from mmfusion.errors import ConfigError
from mmfusion.training.adjustable_rate import AdjustableRate


def build_optimizer(
    variables: list[keras.Variable],
    *,
    steps: int,
    learning_rate: float = 1e-3,
    warmup: float = 0.1,
    weight_decay: float = 0.05,
    beta_2: float = 0.98,
    final_share: float = 0.0,
    adjustable: bool = False,
) -> keras.optimizers.Optimizer:
    """AdamW whose rate rises linearly for ``warmup · steps`` steps, then falls by a cosine.

    ``rate(t) = learning_rate · (final + (1 - final) · (1 + cos(π · (t - w) / (steps - w))) / 2)`` for t ≥ w.
    Decay is decoupled and leaves out every variable of less than two dimensions (biases, norms,
    temperature) and position embeddings.

    Args:
        variables: What is trained.
        steps: All steps of the training.
        learning_rate: The highest rate. Default 1e-3.
        warmup: Share of the steps that warm up, 0 to 1. Default 0.1.
        weight_decay: Decay a step is ``rate · weight_decay``. Default 0.05.
        beta_2: Decay of the second moment. Default 0.98.
        final_share: Share of the rate that is left at the end. Default 0.
        adjustable: Whether the rate is an `AdjustableRate`, which a `LossRecovery` can lower. Default False.

    Returns:
        The optimizer, built for the variables.

    Raises:
        ConfigError: If there are no steps or no variables.

    Example:
        >>> import keras
        >>> from mmfusion.training import build_optimizer
        >>> optimizer = build_optimizer([keras.Variable([[1.0]])], steps=10, learning_rate=0.1, warmup=0.5)
        >>> rates = []
        >>> for step in range(4):
        ...     rates.append(round(float(optimizer.learning_rate), 2))
        ...     optimizer.apply([[[0.0]]])
        >>> rates
        [0.0, 0.02, 0.04, 0.06]

    Source: Loshchilov and Hutter, 2019 (arXiv:1711.05101).
    """
    if steps < 1 or not variables:
        raise ConfigError("nothing to train", expected="steps and variables", found=f"{steps} steps, {len(variables)} variables")
    warmup_steps = min(round(warmup * steps), steps - 1)
    schedule: keras.optimizers.schedules.LearningRateSchedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else learning_rate,
        decay_steps=max(steps - warmup_steps, 1),
        alpha=final_share,
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
    if adjustable:
        schedule = AdjustableRate(schedule)
    optimizer = keras.optimizers.AdamW(
        learning_rate=schedule, weight_decay=weight_decay, beta_1=0.9, beta_2=beta_2, epsilon=1e-8, name="adam_w"
    )
    optimizer.exclude_from_weight_decay(var_list=[variable for variable in variables if not decays(variable)])
    optimizer.build(variables)
    return optimizer


def decays(variable: keras.Variable) -> bool:
    """Whether weight decay applies: to matrices, but not to biases, norms, temperature and positions.

    Args:
        variable: A variable of a model.

    Example:
        >>> import keras
        >>> decays(keras.Variable([[1.0]], name="kernel")), decays(keras.Variable([1.0], name="gamma"))
        (True, False)
    """
    name = variable.path.split("/")[-1]
    # A bias of rank 2 (one row a head, say) is a bias still: the rank alone does not tell it apart from a matrix.
    return len(variable.shape) > 1 and "bias" not in name and "position" not in variable.path
