"""Checkpoints that survive a kill at any moment."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mmfusion.errors import CheckpointError

_STATE, _PROGRESS = "state.safetensors", "progress.json"


class Checkpoints:
    """A folder of checkpoints, each complete or absent.

    A checkpoint holds every variable (weights, optimizer, random states) as safetensors and the progress as JSON. It
    is written beside its place and moved there when it is on the disk, so a kill or a full disk never harms an older one.

    Args:
        folder: Where they lie.
        keep: How many are kept. Default 2.

    Example:
        >>> import keras, tempfile
        >>> from mmfusion.training import Checkpoints
        >>> checkpoints = Checkpoints(tempfile.mkdtemp())
        >>> weight = keras.Variable([1.0, 2.0], name="weight")
        >>> _ = checkpoints.save(7, [weight], {"epoch": 1})
        >>> weight.assign([0.0, 0.0]) is None, checkpoints.restore([weight])
        (False, {'epoch': 1, 'step': 7})
        >>> weight.numpy().tolist()
        [1.0, 2.0]
    """

    def __init__(self, folder: str | Path, *, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = max(keep, 1)

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, in order."""
        found = (path.parent.name for path in self.folder.glob(f"step-*/{_PROGRESS}"))
        return sorted(int(name.removeprefix("step-")) for name in found)

    def save(self, step: int, variables: list[keras.Variable], progress: dict[str, Any]) -> Path:
        """Writes a checkpoint and drops the oldest beyond `keep`.

        Args:
            step: Steps done so far; the checkpoint's name.
            variables: What to save.
            progress: What else to remember, as JSON knows it.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: If it cannot be written (a full disk, say); earlier checkpoints are untouched.
        """
        from safetensors.numpy import save_file

        final = self.folder / f"step-{step:09d}"
        # One name: what a killed training left is written over by the next.
        partial = self.folder / ".partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            arrays = {key: np.require(variable.numpy(), requirements="C") for key, variable in _keyed(variables).items()}
            save_file(arrays, partial / _STATE)
            (partial / _PROGRESS).write_text(json.dumps({**progress, "step": step}), encoding="utf-8")
            for name in (_STATE, _PROGRESS):
                with open(partial / name, "rb") as file:
                    os.fsync(file.fileno())
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            steps = self.steps()
            raise CheckpointError(
                "cannot write a checkpoint",
                where=final,
                found=getattr(error, "strerror", None) or error,
                fix="make room and start the same command again: it continues "
                + (f"from step {steps[-1]}" if steps else "from the start"),
            ) from error
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / f"step-{old:09d}", ignore_errors=True)
        return final

    def restore(self, variables: list[keras.Variable]) -> dict[str, Any] | None:
        """Restores the newest checkpoint into the variables.

        Returns:
            Its progress with ``"step"``, or None if there is none.

        Raises:
            CheckpointError: If it is broken, or was made with a model of other shapes.
        """
        steps = self.steps()
        if not steps:
            return None
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = self.folder / f"step-{steps[-1]:09d}"
        try:
            arrays = load_file(folder / _STATE)
            progress: dict[str, Any] = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise CheckpointError(
                "broken checkpoint", where=folder, found=error, fix="delete this folder: the one before it is used then"
            ) from error
        keyed = _keyed(variables)
        problems = [f"{key} is missing" for key in keyed if key not in arrays]
        problems += [f"{key} is unknown" for key in arrays if key not in keyed]
        problems += [
            f"{key}: expected {list(variable.shape)}, found {list(arrays[key].shape)}"
            for key, variable in keyed.items()
            if key in arrays and tuple(variable.shape) != arrays[key].shape
        ]
        if problems:
            raise CheckpointError(
                "the checkpoint does not fit the model",
                where=folder,
                found="; ".join(problems[:3]) + (f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""),
                fix="use the recipe that it was made with, or another --run folder",
            )
        for key, variable in keyed.items():
            variable.assign(arrays[key])
        return progress


_NUMBERED = re.compile(r"\bseed_generator_\d+/")


def _keyed(variables: list[keras.Variable]) -> dict[str, keras.Variable]:
    keyed: dict[str, keras.Variable] = {}
    for variable in variables:
        # Keras numbers seed generators through the process, whatever made them: their order here is what names them.
        name, count = _NUMBERED.sub("seed_generator/", variable.path), 1
        key = name
        while key in keyed:
            count += 1
            key = f"{name}#{count}"
        keyed[key] = variable
    return keyed
