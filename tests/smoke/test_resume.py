"""A killed training continues where it was, and ends where an uninterrupted one ends."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from smoke.command_line import QUICKSTART, TINY_MODEL, command, in_process_of_its_own, user_environment

pytestmark = pytest.mark.slow

EPOCHS, EPOCH_STEPS = 2, 60
SETTINGS = (
    *TINY_MODEL, "data.limit=240", "train.batch_size=4", f"train.epochs={EPOCHS}", "train.checkpoint_every=7",
    "train.validate_every=2", "train.validation_images=16", "evaluation.caption_images=4", "evaluation.rerank_top_k=2",
    "model.image_encoder.dropout=0.1", "model.text_encoder.dropout=0.1", "--quick",
)  # fmt: skip


def arguments(run: Path, *more: str) -> tuple[object, ...]:
    return ("train", QUICKSTART, *SETTINGS, *more, "--run", run)


def checkpoint_step(run: Path) -> int:
    """The newest whole checkpoint, 0 if there is none."""
    return max((int(path.parent.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*/progress.json")), default=0)


def logged_step(run: Path) -> int:
    """The last step that the log tells of, 0 if there is none."""
    log = run / "logs" / "train.jsonl"
    return max((json.loads(line)["step"] for line in log.read_text().splitlines()), default=0) if log.exists() else 0


def stop_inside_an_epoch(
    run: Path, sign: signal.Signals, *more: str, progress: Callable[[Path], int] = checkpoint_step
) -> tuple[int, str]:
    """Starts training, and sends it a signal when it has come some way into an epoch."""
    process = subprocess.Popen(
        command(*arguments(run, *more)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=user_environment()
    )
    try:
        deadline = time.monotonic() + 300
        while progress(run) < 10:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "nothing within five minutes"
            time.sleep(0.002)
        process.send_signal(sign)
        _, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert 0 < checkpoint_step(run) < EPOCHS * EPOCH_STEPS, "the training was too quick to be stopped"
    return process.returncode, errors


def log(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "logs" / "train.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "checkpoints" / f"step-{checkpoint_step(run):09d}" / "state.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("resume") / "uninterrupted"
    answer = in_process_of_its_own(*arguments(run))
    assert answer.status == 0, answer.err
    assert checkpoint_step(run) == EPOCHS * EPOCH_STEPS
    return run


def assert_equal_ends(run: Path, uninterrupted: Path) -> None:
    expected, found = weights(uninterrupted), weights(run)
    assert set(expected) == set(found)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
    expected_log, found_log = log(uninterrupted), log(run)
    assert [(row["kind"], row["step"], row["epoch"]) for row in found_log] == [
        (row["kind"], row["step"], row["epoch"]) for row in expected_log
    ]
    for theirs, ours in zip(expected_log, found_log, strict=True):
        for key, value in theirs.items():
            if key != "kind":
                np.testing.assert_allclose(ours[key], value, rtol=1e-5, atol=1e-6, err_msg=f"step {ours['step']}: {key}")


def test_killed_inside_an_epoch(uninterrupted, tmp_path):
    run = tmp_path / "killed"
    status, _ = stop_inside_an_epoch(run, signal.SIGKILL)
    assert status == -signal.SIGKILL
    step = checkpoint_step(run)
    assert step % EPOCH_STEPS, "the kill came between two epochs"
    answer = in_process_of_its_own(*arguments(run))
    assert answer.status == 0, answer.err
    assert f"continuing after step {step}" in answer.err
    assert f"{EPOCHS * EPOCH_STEPS} steps" in answer.out
    assert_equal_ends(run, uninterrupted)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_first(sign, uninterrupted, tmp_path):
    run = tmp_path / "interrupted"
    # As recipes come: no checkpoint inside an epoch but by the clock, which is far off.
    status, errors = stop_inside_an_epoch(run, sign, "train.checkpoint_every=null", progress=logged_step)
    assert status == 130, errors
    last = errors.strip().splitlines()[-1]
    step = checkpoint_step(run)
    assert last.startswith("stopped; the same command again continues after step ") and str(run) in last
    assert f"after step {step} " in last and "Traceback" not in errors
    assert step % EPOCH_STEPS, "it stopped between two epochs"
    answer = in_process_of_its_own(*arguments(run))
    assert answer.status == 0 and f"continuing after step {step}" in answer.err, answer.err
    assert_equal_ends(run, uninterrupted)
