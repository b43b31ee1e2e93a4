"""A learned gain of a residual branch that starts small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor

from mmfusion.layers.checks import check_tokens, check_width


@keras.saving.register_keras_serializable(package="mmfusion")
class LayerScale(keras.layers.Layer):
    """``gain · x``, a gain a feature.

    Args:
        initial: Its start. Default 1e-5.

    Call arguments:
        branch: ``float[B, N, D]``.

    Returns:
        ``float[B, N, D]``.

    Raises:
        ConfigError: If rank, width or dtype of the branch is wrong.

    Example:
        >>> import numpy as np
        >>> from mmfusion.layers import LayerScale
        >>> float(LayerScale(initial=0.5)(np.ones((1, 1, 2), "float32"))[0, 0, 0])
        0.5

    Source: Touvron et al. 2021 (arXiv:2103.17239).
    """

    def __init__(self, *, initial: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initial = initial
        self.supports_masking = True

    def build(self, branch_shape: Sequence[int | None]) -> None:
        """Builds the gain for the width of the branch."""
        self._dim = check_width(branch_shape, "branch", self.name)
        self.gain = self.add_weight(shape=(self._dim,), initializer=keras.initializers.Constant(self.initial), name="gain")
        self.built = True

    def call(self, branch: KerasTensor) -> KerasTensor:
        """Scales; see the class."""
        check_tokens(branch, "branch", self.name, self._dim)
        return branch * self.gain

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "initial": self.initial}
