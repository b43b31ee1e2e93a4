"""Where everything of one training lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmfusion.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from mmfusion.config import Recipe

# What may change between two starts of one run, since the batches, the loss and the updates do not depend on it.
_FREE = (
    "tune",
    "quick",
    "evaluation",
    "decoding",
    "data.max_bad_share",
    "train.keep",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.tensorboard",
    "train.diagnostics",
)


class RunFolder:
    """The folder of one training: recipe, vocabulary, logs, checkpoints, best model, figures, evaluations.

    Args:
        path: The folder; it need not exist yet.

    Example:
        >>> from mmfusion.training import RunFolder
        >>> RunFolder("runs/a").recipe.as_posix()
        'runs/a/recipe.yaml'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.vocabulary = self.path / "vocab.txt"
        self.logs = self.path / "logs"
        self.train_log = self.logs / "train.jsonl"
        self.tensorboard = self.logs / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.best_model = self.path / "best.keras"
        self.quarantine = self.path / "quarantine.jsonl"
        self.figures = self.path / "figures"
        self.evaluation = self.path / "evaluation"

    def create(self) -> None:
        """Makes the folder and its rooms."""
        try:
            for folder in (self.logs, self.checkpoints, self.figures, self.evaluation):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError("cannot create the run folder", where=self.path, found=error.strerror) from error

    def start(self, recipe: Recipe) -> None:
        """Makes the folder for a recipe, or makes sure that what was trained in it was trained by this recipe.

        Args:
            recipe: The recipe; it is written to the folder.

        Raises:
            ConfigError: If something was trained here by another recipe.
            CheckpointError: If the folder cannot be written.
        """
        from mmfusion.config import changed_paths, load_recipe, save_recipe

        self.create()
        if self.recipe.is_file():
            if not self.has_training:
                # A start that failed before its first checkpoint binds nobody.
                self.vocabulary.unlink(missing_ok=True)
            elif changed := changed_paths(load_recipe(self.recipe), recipe, _FREE):
                raise ConfigError(
                    "this folder holds a run of another recipe",
                    where=self.path,
                    found=f"changes in {', '.join(changed)}",
                    fix="name another --run folder, or delete this one",
                )
        try:
            save_recipe(recipe, self.recipe)
        except OSError as error:
            raise CheckpointError("cannot write the recipe", where=self.recipe, found=error.strerror) from error

    @property
    def has_training(self) -> bool:
        """Whether anything was trained here: there is a checkpoint or a model."""
        return self.best_model.is_file() or any(self.checkpoints.glob("step-*"))

    def require(self) -> RunFolder:
        """Returns itself if a trained model lies here.

        Raises:
            CheckpointError: If this is no run folder, or nothing was trained yet.
        """
        if not self.recipe.is_file():
            raise CheckpointError(
                "not a run folder",
                where=self.path,
                expected="a folder with recipe.yaml, as `mmfusion train` makes it",
                found="no such folder" if not self.path.exists() else "no recipe.yaml",
                fix="name the folder that was given as --run",
            )
        if not self.best_model.is_file() and (self.path / "mmfusion.json").is_file():
            raise CheckpointError(
                "an export is no run", where=self.path, expected="the run folder that it was made from", found="mmfusion.json",
                fix="name the folder that was given as --run",
            )  # fmt: skip
        if not self.best_model.is_file():
            raise CheckpointError(
                "this run has no model yet",
                where=self.path,
                expected="best.keras",
                fix="start the same `mmfusion train` command again: it continues",
            )
        return self
