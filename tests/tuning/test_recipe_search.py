"""Searches with the real KerasTuner and real processes; the trainer is a script that answers at once."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmfusion.config import load_recipe, recipe_from_dict
from mmfusion.errors import ConfigError
from mmfusion.tuning import recipe_search, search_recipe, trial_recipe
from mmfusion.tuning.recipe_search import best_figure, trial_command

# Reads trial.yaml as the training would, writes the log as the training would: best at a learning rate of 1e-3.
TRAINER = """
import json, math, pathlib, sys, time, yaml
run = pathlib.Path(sys.argv[1])
recipe = yaml.safe_load((run / "trial.yaml").read_text())
with open(run / "starts.txt", "a") as file:
    file.write("start\\n")
time.sleep(float(sys.argv[2]))
if recipe["train"]["batch_size"] == 3:
    sys.exit("error: this batch cannot be")
value = 100 - 10 * abs(math.log10(recipe["train"]["learning_rate"]) + 3)
(run / "logs").mkdir(exist_ok=True)
(run / "checkpoints").mkdir(exist_ok=True)
(run / "best.keras").write_text("weights")
rows = [{"kind": "epoch", "val_rsum": value - epoch, "val_loss": 1 / value + epoch} for epoch in range(recipe["train"]["epochs"])]
(run / "logs" / "train.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""
SPACE = {"train.learning_rate": {"min": 1e-4, "max": 1e-1, "sampling": "log"}, "fusion.depth": {"choices": [1, 2]}}
needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn")
BAYESIAN = pytest.param("bayesian", marks=needs_sklearn)


def child_environment() -> dict[str, str]:
    """The environment of a process that imports this mmfusion."""
    paths = [str(Path(recipe_search.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def recipe(**tune):
    return recipe_from_dict(
        {
            "name": "searched",
            "train": {"epochs": 4},
            "tune": {"max_trials": 3, "space": SPACE, **tune},
        }
    )


@pytest.fixture
def quick_trainer(monkeypatch, tmp_path):
    """Trials train by the script above; the real command is tried in tests/smoke."""
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    monkeypatch.setattr(recipe_search, "trial_command", lambda run: [sys.executable, str(script), str(run), "0"])


@pytest.mark.parametrize("tuner", ["random", BAYESIAN])
def test_each_trial_is_reported_and_the_best_recipe_is_written(tuner, quick_trainer, tmp_path):
    seen = []
    result = search_recipe(recipe(tuner=tuner, keep_best=2), tmp_path / "search", report=seen.append)
    assert len(seen) == len(result.trials) == 3
    assert {trial.name for trial in seen} == {trial.name for trial in result.trials}
    scores = [trial.score for trial in result.trials]
    assert scores == sorted(scores, reverse=True) and all(trial.status == "COMPLETED" for trial in result.trials)
    assert len({trial.values["train.learning_rate"] for trial in result.trials}) == 3
    best = load_recipe(result.best_recipe)
    assert best == trial_recipe(recipe(tuner=tuner, keep_best=2), result.trials[0].values)
    assert best.tune is None and best.train.learning_rate == result.trials[0].values["train.learning_rate"]
    rows = json.loads((tmp_path / "search" / "trials.json").read_text())
    assert [row["name"] for row in rows] == [trial.name for trial in result.trials]
    table = (tmp_path / "search" / "trials.md").read_text()
    assert all(trial.name in table for trial in result.trials) and "train.learning_rate" in table
    kept = [trial.folder for trial in result.trials if (trial.folder / "best.keras").exists()]
    assert kept == [trial.folder for trial in result.trials[:2]]


def test_hyperband_gives_the_better_ones_more_epochs(quick_trainer, tmp_path):
    result = search_recipe(recipe(tuner="hyperband", epochs=4), tmp_path / "search")
    epochs = {trial.name: load_recipe(trial.folder / "trial.yaml").train.epochs for trial in result.trials}
    assert set(epochs.values()) == {2, 4} and all(trial.status == "COMPLETED" for trial in result.trials)
    assert load_recipe(result.best_recipe).train.learning_rate == result.trials[0].values["train.learning_rate"]


def test_less_of_a_loss_is_better_without_being_told(quick_trainer, tmp_path):
    searched = recipe(tuner="random", objective={"metric": "val_loss"})
    result = search_recipe(searched, tmp_path / "search")
    scores = [trial.score for trial in result.trials]
    assert scores == sorted(scores) and scores[0] < scores[-1]
    # A trial keeps the model that the search is after, and says that figure.
    assert {load_recipe(trial.folder / "trial.yaml").train.monitor for trial in result.trials} == {"val_loss"}


def test_a_direction_that_contradicts_the_metric_is_refused():
    with pytest.raises(ConfigError, match=r"tune\.objective\.direction\]: expected min for val_loss, found max"):
        recipe(objective={"metric": "val_loss", "direction": "max"})


def test_a_failing_trial_is_told_and_the_search_goes_on(quick_trainer, tmp_path):
    space = {"train.batch_size": {"choices": [3, 8]}, **SPACE}
    seen = []
    result = search_recipe(recipe(tuner="random", max_trials=8, space=space), tmp_path / "search", report=seen.append)
    failed = [trial for trial in seen if trial.values["train.batch_size"] == 3]
    assert failed and len(seen) == 8
    assert all(trial.score is None and "this batch cannot be" in str(trial.error) for trial in failed)
    assert result.trials[0].score is not None and result.trials[-1].score is None
    assert "this batch cannot be" in result.report.read_text()


def test_an_impossible_combination_fails_alone(quick_trainer, tmp_path):
    space = {"fusion.num_heads": {"choices": [3, 4]}, **SPACE}  # 3 does not divide the width
    result = search_recipe(recipe(tuner="random", max_trials=6, space=space), tmp_path / "search")
    failed = [trial for trial in result.trials if trial.values["fusion.num_heads"] == 3]
    assert failed and len(failed) < 6
    assert all(trial.score is None and "fusion.num_heads" in str(trial.error) for trial in failed)


def test_all_failing_leaves_no_best_recipe(quick_trainer, tmp_path):
    space = {"train.batch_size": {"choices": [3]}, **SPACE}
    result = search_recipe(recipe(tuner="random", max_trials=2, space=space), tmp_path / "search")
    assert result.best_recipe is None and len(result.trials) == 2


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["random", BAYESIAN, "hyperband"])
def test_a_killed_search_goes_on_where_it_was(tuner, tmp_path):
    """kill -9 in the middle of a trial: finished trials stay, the broken one starts again, none is lost or doubled."""
    folder, trainer, program = tmp_path / "search", tmp_path / "trainer.py", tmp_path / "program.py"
    trainer.write_text(TRAINER)
    program.write_text(
        f"""
import json, sys
from mmfusion.config import recipe_from_dict
from mmfusion.tuning import recipe_search
recipe_search.trial_command = lambda run: [sys.executable, {str(trainer)!r}, str(run), sys.argv[1]]
recipe = recipe_from_dict(json.loads({recipe(tuner=tuner, epochs=4).model_dump_json()!r}))
result = recipe_search.search_recipe(recipe, {str(folder)!r}, report=lambda trial: print("REPORT", trial.name, flush=True))
print("END", json.dumps([[trial.name, trial.score] for trial in result.trials]))
"""
    )
    environment = child_environment()
    first = subprocess.Popen(
        [sys.executable, str(program), "0.7"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert first.stdout is not None
    line = next(line for line in first.stdout if line.startswith("REPORT"))
    done = line.split()[1]
    deadline = time.monotonic() + 60
    while len(list(folder.glob("trials/*/starts.txt"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    time.sleep(1.0)  # The script, unlike a real trial, outlives the search for a moment.
    second = subprocess.run(
        [sys.executable, str(program), "0"], capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert second.returncode == 0, second.stderr[-2000:]
    trials = dict(json.loads(second.stdout.split("END ")[1]))
    assert done in trials and all(score is not None for score in trials.values())
    if tuner != "hyperband":
        assert len(trials) == 3
    starts = {path.parent.name: path.read_text().count("start") for path in folder.glob("trials/*/starts.txt")}
    assert set(starts) == set(trials)
    assert starts[done] == 1, "a finished trial was trained again"
    assert f"REPORT {done}" not in second.stdout
    assert sum(count > 1 for count in starts.values()) == 1


def test_a_trial_ends_with_the_search(tmp_path):
    """A killed search leaves no trial behind that trains on in its folder."""
    if sys.platform != "linux":
        pytest.skip("Linux alone can be asked for that")
    child = (
        "import time; from mmfusion.cli.trial_process import end_with_parent; import os; end_with_parent(os.getppid()); "
        "print('up', flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    environment = child_environment()
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.kill()
    # The pipe ends when nobody holds it any more: the child is gone too.
    assert process.communicate(timeout=20)[0] == ""


def test_the_command_of_a_trial_trains_its_folder(tmp_path):
    (tmp_path / "trial.yaml").write_text("train: {epoch: 3}\n")
    done = subprocess.run(trial_command(tmp_path), capture_output=True, text=True, check=False, env=child_environment())
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: unknown key [{tmp_path}/trial.yaml: train.epoch]; did you mean train.epochs?"


def test_an_unknown_key_of_the_space_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"tune\.space\.train\.learning_rat.*did you mean train\.learning_rate"):
        recipe(space={"train.learning_rat": {"min": 1e-4, "max": 1e-2}})


def test_bayesian_without_scikit_learn_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"needs scikit-learn .*pip install scikit-learn, or set tune.tuner=random"):
        search_recipe(recipe(tuner="bayesian"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_recipe_without_a_space_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nothing to search over"):
        search_recipe(recipe_from_dict({"name": "plain"}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_best_figure_names_the_known_ones(tmp_path):
    log = tmp_path / "train.jsonl"
    log.write_text('{"kind": "epoch", "val_rsum": 3.0}\n{"kind": "step", "val_rsum": 9.0}\n{"kind": "epoch", "val_rsum": 2.0}\n')
    assert (best_figure(log, "val_rsum", "max"), best_figure(log, "val_rsum", "min")) == (3.0, 2.0)
    with pytest.raises(ConfigError, match="expected val_rsum, found val_loss"):
        best_figure(log, "val_loss", "min")


def test_a_search_goes_on_with_its_own_recipe_alone(quick_trainer, tmp_path):
    search_recipe(recipe(max_trials=1), tmp_path / "search")
    other = recipe_from_dict({**recipe().model_dump(mode="json"), "seed": 5})
    with pytest.raises(ConfigError, match="a search of another recipe.*changes in seed;"):
        search_recipe(other, tmp_path / "search")
    assert len(search_recipe(recipe(max_trials=2), tmp_path / "search").trials) == 2
