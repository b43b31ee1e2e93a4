"""A search over a recipe's ranges: KerasTuner proposes, a process of its own trains each trial."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmfusion.errors import ConfigError

if TYPE_CHECKING:
    from mmfusion.config import Recipe


class Trial(NamedTuple):
    """One trial of a search.

    Attributes:
        name: Its id.
        values: The values it tried, by dotted path.
        score: The best value of the objective's figure, or None if it failed.
        status: ``"COMPLETED"``, ``"INVALID"`` or ``"FAILED"``.
        error: The last line of what went wrong, or None.
        folder: Its run folder.
    """

    name: str
    values: dict[str, Any]
    score: float | None
    status: str
    error: str | None
    folder: Path


class SearchResult(NamedTuple):
    """How a search ended.

    Attributes:
        trials: All trials, best first, failed ones last.
        best_recipe: Where the best recipe was written, or None if every trial failed.
        report: Where the table of all trials was written.
    """

    trials: list[Trial]
    best_recipe: Path | None
    report: Path


def search_recipe(
    recipe: Recipe,
    folder: str | Path,
    *,
    max_trials: int | None = None,
    report: Callable[[Trial], None] | None = None,
) -> SearchResult:
    """Searches the ranges of ``recipe.tune``; called again with the same folder, it goes on.

    Args:
        recipe: The recipe, with a ``tune`` section.
        folder: Where trials, state and results go.
        max_trials: Instead of ``tune.max_trials``.
        report: Called after each trial.

    Returns:
        The `SearchResult`: also ``best.yaml``, ``trials.json`` and ``trials.md`` in the folder.

    Raises:
        ConfigError: If the recipe has no ``tune`` section, or the folder holds a search of another recipe.
    """
    from mmfusion.config import save_recipe

    if recipe.tune is None or not recipe.tune.space:
        raise ConfigError(
            "nothing to search over", where=recipe.name, expected="a section tune: with space:", found="none",
            fix="write ranges such as tune.space: {train.learning_rate: {min: 1.0e-4, max: 1.0e-2, sampling: log}}",
        )  # fmt: skip
    folder = Path(folder).resolve()
    tune = recipe.tune
    oracle = _oracle(recipe, max_trials or tune.max_trials)
    folder.mkdir(parents=True, exist_ok=True)
    _keep_recipe(recipe, folder)
    tuner = _tuner_class()(
        oracle=oracle,
        directory=str(folder),
        project_name="state",
    )
    tuner.prepare(recipe, folder, report, tune.keep_best)
    tuner.search(verbose=0)
    trials = tuner.trials()
    _write_report(trials, folder, tune.objective.metric)
    best = None
    if trials and trials[0].score is not None:
        best = folder / "best.yaml"
        save_recipe(trial_recipe(recipe, trials[0].values), best)
    return SearchResult(trials, best, folder / "trials.md")


def trial_recipe(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe of a trial: the searched values in place, no search of its own.

    Args:
        recipe: The searched recipe.
        values: Values by dotted path; KerasTuner's own (``tuner/…``) but for the epochs are left out.

    Returns:
        The recipe.
    """
    from mmfusion.config import recipe_from_dict
    from mmfusion.config.overrides import set_dotted

    content = recipe.model_dump(mode="json")
    content["tune"] = None
    if recipe.tune is not None:
        # A trial keeps the model, and a validation says the figures, that the search is after.
        set_dotted(content, "train.monitor", recipe.tune.objective.metric)
    for path, value in values.items():
        if not path.startswith("tuner/"):
            set_dotted(content, path, value)
    if recipe.tune is not None and recipe.tune.epochs is not None:
        set_dotted(content, "train.epochs", recipe.tune.epochs)
    if values.get("tuner/epochs"):
        set_dotted(content, "train.epochs", int(values["tuner/epochs"]))
    return recipe_from_dict(content, where="a trial's recipe")


# What may change between two starts of one search, since trials that are done stay comparable with those to come.
_FREE = ("quick", "tune.max_trials", "tune.keep_best", "evaluation", "decoding", "train.monitor", "train.tensorboard")


def _keep_recipe(recipe: Recipe, folder: Path) -> None:
    from mmfusion.config import changed_paths, load_recipe, save_recipe

    path = folder / "search.yaml"
    if path.is_file() and any((folder / "state").glob("trial_*")):
        changed = changed_paths(load_recipe(path), recipe, _FREE)
        if changed:
            raise ConfigError(
                "this folder holds a search of another recipe",
                where=folder,
                found=f"changes in {', '.join(changed)}",
                fix="name another folder, or delete this one",
            )
    save_recipe(recipe, path)


def trial_command(run: Path) -> list[str]:
    """The command that trains the trial of a folder, from its ``trial.yaml``."""
    return [sys.executable, "-m", "mmfusion.cli.trial_process", str(run), str(os.getpid())]


def _oracle(recipe: Recipe, max_trials: int) -> Any:
    import keras_tuner

    tune = recipe.tune
    assert tune is not None
    parameters = keras_tuner.HyperParameters()
    for path, space in tune.space.items():
        _add(parameters, path, space)
    shared: dict[str, Any] = {
        "objective": keras_tuner.Objective(tune.objective.metric, tune.objective.wanted),
        "hyperparameters": parameters,
        "allow_new_entries": False,
        "tune_new_entries": False,
        # KerasTuner takes 0 for "none given", and draws one.
        "seed": recipe.seed + 1,
        # A trial that fails (an impossible combination, say) is reported; the search goes on.
        "max_consecutive_failed_trials": max_trials + 1,
    }
    if tune.tuner == "random":
        return keras_tuner.oracles.RandomSearchOracle(max_trials=max_trials, **shared)
    if tune.tuner == "bayesian":
        try:
            import sklearn.gaussian_process  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "the bayesian tuner needs scikit-learn", where="tune.tuner", found=error,
                fix="pip install scikit-learn, or set tune.tuner=random",
            ) from error  # fmt: skip
        return keras_tuner.oracles.BayesianOptimizationOracle(max_trials=max_trials, **shared)
    return keras_tuner.oracles.HyperbandOracle(max_epochs=tune.epochs or recipe.train.epochs, **shared)


def _add(parameters: Any, path: str, space: Any) -> None:
    if space.choices is not None:
        values = list(space.choices)
        if all(isinstance(value, (str, int, float, bool)) for value in values):
            parameters.Choice(path, values)
            return
        raise ConfigError("choices must be plain values", where=f"tune.space.{path}", found=values)
    kind = parameters.Int if space.type == "int" else parameters.Float
    parameters_of_range: dict[str, Any] = {"min_value": space.min, "max_value": space.max, "sampling": space.sampling}
    if space.step is not None:
        parameters_of_range["step"] = space.step
    kind(path, **parameters_of_range)


def _tuner_class() -> Any:
    import keras_tuner
    from keras_tuner.errors import FailedTrialError

    class _RecipeTuner(keras_tuner.engine.base_tuner.BaseTuner):
        """KerasTuner's loop and state; a trial is a process of its own, so its memory goes with it."""

        def prepare(self, recipe: Any, folder: Path, report: Any, keep_best: int) -> None:
            self.recipe, self.folder, self.report, self.keep_best = recipe, folder, report, keep_best

        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
            from mmfusion.config import save_recipe

            # Here, since the package imports TensorFlow, which KerasTuner has done by now and naming this module should not.
            from mmfusion.training import RunFolder

            run = self.folder / "trials" / trial.trial_id
            run.mkdir(parents=True, exist_ok=True)
            metric = self.recipe.tune.objective.metric
            try:
                recipe = trial_recipe(self.recipe, trial.hyperparameters.values)
                save_recipe(recipe, run / "trial.yaml")
            except ConfigError as error:
                raise FailedTrialError(str(error)) from error
            with (run / "output.txt").open("a", encoding="utf-8") as output:
                process = subprocess.run(trial_command(run), stdout=output, stderr=subprocess.STDOUT, check=False)
            if process.returncode in (130, -2):
                raise KeyboardInterrupt
            if process.returncode:
                lines = (run / "output.txt").read_text(encoding="utf-8").strip().splitlines()
                raise FailedTrialError(lines[-1] if lines else f"exit status {process.returncode}")
            return {metric: best_figure(RunFolder(run).train_log, metric, self.recipe.tune.objective.wanted)}

        def on_trial_end(self, trial: Any) -> None:
            super().on_trial_end(trial)
            trials = self.trials()
            if self.report is not None:
                self.report(next(item for item in trials if item.name == trial.trial_id))
            _write_report(trials, self.folder, self.recipe.tune.objective.metric)
            for worse in trials[self.keep_best :]:
                shutil.rmtree(worse.folder / "checkpoints", ignore_errors=True)
                (worse.folder / "best.keras").unlink(missing_ok=True)

        def trials(self) -> list[Trial]:
            sign = -1.0 if self.recipe.tune.objective.wanted == "max" else 1.0
            found = [self._described(trial) for trial in self.oracle.trials.values() if trial.status != "RUNNING"]
            return sorted(found, key=lambda trial: (trial.score is None, sign * (trial.score or 0.0)))

        def _described(self, trial: Any) -> Trial:
            message = (trial.message or "").strip().splitlines()
            error = message[-1].split("FailedTrialError: ")[-1] if message else None
            score = trial.score if trial.status == "COMPLETED" else None
            values = dict(trial.hyperparameters.values)
            return Trial(trial.trial_id, values, score, trial.status, error, self.folder / "trials" / trial.trial_id)

    return _RecipeTuner


def best_figure(log: Path, metric: str, direction: str) -> float:
    """The best value of a figure in a training log.

    Args:
        log: ``train.jsonl``.
        metric: The figure, ``"val_rsum"`` say.
        direction: ``"max"`` or ``"min"``.

    Raises:
        ConfigError: If the log has no such figure.
    """
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    values = [row[metric] for row in rows if row["kind"] == "epoch" and metric in row]
    if not values:
        known = sorted({key for row in rows if row["kind"] == "epoch" for key in row if key.startswith("val_")})
        raise ConfigError("no such figure in the log", where="tune.objective.metric", expected=", ".join(known), found=metric)
    return float(max(values) if direction == "max" else min(values))


def _write_report(trials: list[Trial], folder: Path, metric: str) -> None:
    rows = [trial._asdict() | {"folder": str(trial.folder)} for trial in trials]
    (folder / "trials.json").write_text(json.dumps(rows, indent=2, default=str) + "\n", encoding="utf-8")
    names = sorted({name for trial in trials for name in trial.values if not name.startswith("tuner/") or name == "tuner/epochs"})
    lines = [
        f"| trial | {metric} | status | {' | '.join(names)} |",
        "|" + "---|" * (3 + len(names)),
        *(
            f"| {trial.name} | {'' if trial.score is None else f'{trial.score:.4g}'} | {trial.error or trial.status} | "
            + " | ".join(_shown(trial.values.get(name)) for name in names)
            + " |"
            for trial in trials
        ),
    ]
    (folder / "trials.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
