"""Every command, end to end, on the built-in pictures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from smoke.command_line import QUICKSTART, REPOSITORY, TINY, command, in_process_of_its_own, user_environment

pytestmark = pytest.mark.slow


def test_train_leaves_all_it_promises(trained):
    run = trained.folder
    assert {path.name for path in run.iterdir()} >= {"recipe.yaml", "vocab.txt", "best.keras", "logs", "checkpoints", "figures"}
    rows = [json.loads(line) for line in (run / "logs" / "train.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert [row["epoch"] for row in epochs] == [0, 1]
    assert epochs[1]["loss"] < epochs[0]["loss"]
    assert "val_rsum" in epochs[-1]
    assert (run / "figures" / "learning_curves.png").stat().st_size > 5000


def test_train_says_one_clear_end(trained):
    assert re.fullmatch(r"8 steps, best val_rsum [\d.]+ at epoch 2, \d+ s; .*run\n", trained.answer.out)


def test_no_noise_on_the_screen(trained):
    for word in ("port.cc", "oneDNN", "cuda", "CUDA", "absl", "AutoGraph", "Warning", "WARNING", "rebuild TensorFlow"):
        assert word not in trained.answer.err, trained.answer.err
    assert not re.search(r"^[IWEF]\d{4} ", trained.answer.err, re.MULTILINE)


def test_the_same_command_again_has_nothing_left_to_do(trained, mmfusion):
    answer = mmfusion("train", QUICKSTART, *TINY, "--quick", "--run", trained.folder)
    assert answer.status == 0 and "8 steps" in answer.out and "continuing after step 8" in answer.err


def test_evaluate(trained, mmfusion, tmp_path):
    answer = mmfusion("evaluate", trained.folder, "--output", tmp_path / "evaluation")
    assert answer.status == 0, answer.err
    written = {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert {"metrics.json", "metrics.md", "retrieval.png", "captions.png", "attention.png"} <= written
    assert "R@1" in answer.out


def test_other_number_formats(trained, export_folder, pictures, mmfusion, tmp_path):
    answer = mmfusion("evaluate", trained.folder, "evaluation.captions=false", "--precision", "int8")
    assert answer.status == 0, answer.err
    told = json.loads((trained.folder / "evaluation-int8" / "metrics.json").read_text())
    assert "computed in int8, to which the model was brought after its training" in told["meta"]["notes"]
    answer = mmfusion("caption", trained.folder, pictures.good["plain"], "--precision", "bfloat16")
    assert answer.status == 0 and answer.out.startswith(f"{pictures.good['plain']}: ")
    for found in ("search", "red square", pictures.folder), ("locate", pictures.good["plain"], "red square"):
        answer = mmfusion(found[0], trained.folder, *found[1:], "--precision", "bfloat16")
        assert answer.status == 0 and answer.out
    picture, chosen = pictures.good["plain"], "number format was chosen when it was made"
    for refused, words in (
        (("caption", export_folder, picture, "--precision", "int8"), chosen),
        (("search", export_folder, "red square", pictures.folder, "--precision", "int8"), chosen),
        (("locate", export_folder, picture, "red square", "--precision", "int8"), chosen),
        (("translate", export_folder, picture, "red square", "--to", "de", "--precision", "int8"), chosen),
        (("serve", export_folder, "--precision", "int8"), chosen),
        (("export", trained.folder, "--format", "onnx", "--precision", "int8"), "of LiteRT and ONNX are those of their files"),
        (("caption", trained.folder, picture, "--precision", "int4"), "'int4' is not one of"),
    ):
        answer = mmfusion(*refused)
        assert answer.status == 2 and len(answer.error_lines) == 1 and words in answer.err


@pytest.mark.parametrize("kind", ["run", "export"])
def test_caption(kind, trained, export_folder, pictures, mmfusion):
    model = trained.folder if kind == "run" else export_folder
    answer = mmfusion("caption", model, *pictures.good.values(), "--json")
    assert answer.status == 0 and answer.error_lines == []
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert [row["image"] for row in rows] == [str(path) for path in pictures.good.values()]
    assert all(isinstance(row["caption"], str) and row["score"] <= 0 for row in rows)


@pytest.mark.parametrize(("first", "given"), [(0, ()), (4, ("--set", "seeds=4"))])
def test_a_seed_is_of_each_picture_and_not_of_each_batch(first, given, trained, pictures, mmfusion, tmp_path):
    from mmfusion.export import load

    picture = pictures.good["plain"]
    copies = [tmp_path / f"{number:02}{picture.suffix}" for number in range(35)]
    for copy in copies:
        copy.write_bytes(picture.read_bytes())
    (tmp_path / f"20x{picture.suffix}").write_bytes(b"no picture")
    sampled = ("--set", "method=sample", "--set", "temperature=2.0", *given)
    answer = mmfusion("caption", trained.folder, tmp_path, "--json", *sampled)
    assert answer.status == 2 and len(answer.error_lines) == 1
    said = {Path(row["image"]).name: row["caption"] for row in map(json.loads, answer.out.splitlines())}
    model = load(trained.folder)
    assert model.batch_size < len(copies)
    # In the order of the names, the one that is none among them.
    seeds = [first + number + (number > 20) for number in range(len(copies))]
    expected = model.captions(copies, method="sample", temperature=2.0, seeds=seeds)
    assert [said[copy.name] for copy in copies] == [captions[0].text for captions in expected]
    assert len(set(said.values())) > 5


def test_run_and_export_caption_alike(trained, export_folder, pictures, mmfusion):
    good = list(pictures.good.values())
    assert mmfusion("caption", trained.folder, *good).out == mmfusion("caption", export_folder, *good).out


@pytest.mark.parametrize("kind", ["run", "export"])
def test_search_finds_skips_and_draws(kind, trained, export_folder, pictures, mmfusion, tmp_path):
    model, picture = (trained.folder if kind == "run" else export_folder), tmp_path / "hits.png"
    answer = mmfusion("search", model, "red square", pictures.folder, "--top-k", "2", "--rerank", "3", "--picture", picture)
    assert answer.status == 0, answer.err
    skipped = [line for line in answer.error_lines if line.startswith("skipped: ")]
    assert len(skipped) == 2 and "truncated.jpg" in "".join(skipped) and "text.jpg" in "".join(skipped)
    hits = [line for line in answer.out.splitlines() if " similarity " in line]
    assert len(hits) == 2 and all("match" in hit for hit in hits)
    assert f"drawn: {picture}" in answer.out
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG" and drawn.width > 500


@pytest.mark.parametrize("kind", ["run", "export"])
def test_locate_says_where_and_draws(kind, trained, export_folder, pictures, mmfusion, tmp_path):
    model, picture, image = (
        (trained.folder if kind == "run" else export_folder),
        tmp_path / "heat.png",
        next(iter(pictures.good.values())),
    )
    answer = mmfusion("locate", model, image, "red square", "--picture", picture)
    assert answer.status == 0, answer.err
    assert re.match(
        r"hottest: row \d of \d+, column \d of \d+, \d+% of the heat; the text fits the picture: [01]\.\d{3}$",
        answer.out.splitlines()[0],
    )
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG" and drawn.width > 300
    bad = mmfusion("locate", model, image, "red square", "--method", "magic")
    assert bad.status == 2 and len(bad.error_lines) == 1 and "magic" in bad.err
    missing = mmfusion("locate", model, tmp_path / "away.jpg", "red square")
    assert missing.status == 2 and len(missing.error_lines) == 1 and "away.jpg" in missing.err


def test_export_refuses_to_replace_unless_told(trained, export_folder, mmfusion):
    answer = mmfusion("export", trained.folder, "--output", export_folder)
    assert answer.status == 2 and len(answer.error_lines) == 1 and "--overwrite" in answer.err


def test_verify_runs_the_export_in_a_fresh_process(trained, export_folder):
    answer = in_process_of_its_own("verify", export_folder, "--run", trained.folder)
    assert answer.status == 0, answer.err
    assert "verified" in answer.out and "encode_text_ids/embedding" in answer.out and "DIFFERS" not in answer.out
    assert answer.err == ""


def test_verify_of_what_is_no_picture_and_of_an_export_as_the_run(trained, export_folder, mmfusion, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    answer = mmfusion("verify", export_folder, tmp_path / "text.jpg", "--run", trained.folder)
    assert answer.status == 2 and "not a readable image" in answer.error_lines[0] and "text.jpg" in answer.error_lines[0]
    for asked in ("verify", export_folder, "--run", export_folder), ("evaluate", export_folder), ("export", export_folder):
        answer = mmfusion(*asked)
        assert answer.status == 2 and len(answer.error_lines) == 1 and "an export is no run" in answer.err


def test_config_show_and_check(mmfusion):
    shown = mmfusion("config", "show", QUICKSTART, "train.epochs=3", "--quick")
    assert shown.status == 0 and "epochs: 3" in shown.out and "limit: 512" in shown.out
    checked = mmfusion("config", "check", *sorted((REPOSITORY / "configs").glob("*.yaml")))
    assert checked.status == 0 and checked.out.count(": good") == len(list((REPOSITORY / "configs").glob("*.yaml")))


def test_config_check_names_every_bad_recipe(mmfusion, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("train: {epoch: 3}\n")
    answer = mmfusion("config", "check", QUICKSTART, bad)
    assert answer.status == 2 and "good" in answer.out
    assert answer.error_lines == [f"error: unknown key [{bad}: train.epoch]; did you mean train.epochs?"]


def test_config_check_takes_the_changes_that_train_takes(mmfusion):
    answer = mmfusion("config", "check", "quickstart", "styles", "fusion.style=gated", "train.epochs=3")
    assert answer.status == 0 and answer.out == "quickstart: good\nstyles: good\n"
    refused = mmfusion("config", "check", "quickstart", "styles", "fusion.style=merged", "fusion.kernel=local")
    assert refused.status == 2 and refused.out == "" and len(refused.error_lines) == 2
    assert all("fusion.kernel]: expected exact or chunked or linear with style merged" in line for line in refused.error_lines)
    nameless = mmfusion("config", "check", "fusion.style=gated")
    assert nameless.status == 2 and "no recipe is named" in nameless.err


def test_data_check_names_each_bad_row(pictures, mmfusion, tmp_path):
    picture = pictures.good["plain"]
    for number in range(25):
        (tmp_path / f"{number}{picture.suffix}").write_bytes(picture.read_bytes())
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("a picture\n")
    answer = mmfusion("data", "check", tmp_path)
    assert answer.status == 0 and answer.out.count("left out: ") == 20 and "and 2 more, which --json lists" in answer.out


def test_data_check_builtin(mmfusion, tmp_path):
    answer = mmfusion("data", "check", QUICKSTART, "data.limit=8", "--json", "--output", tmp_path / "report.json")
    assert answer.status == 0, answer.err
    assert json.loads(answer.out) == json.loads((tmp_path / "report.json").read_text())


def test_tune_reports_each_trial_and_writes_a_recipe_that_trains(mmfusion, tmp_path):
    """Two real trials; killed and resumed searches are in tests/tuning."""
    answer = in_process_of_its_own(
        "tune", QUICKSTART, *TINY, "tune.tuner=random", "train.epochs=1", "--quick", "--folder", tmp_path / "search"
    )
    assert answer.status == 0, answer.err
    assert len(re.findall(r"^trial \S+: val_rsum [\d.]+ ", answer.out, re.MULTILINE)) == 2, answer.out
    best = tmp_path / "search" / "best.yaml"
    assert f"best recipe: {best}" in answer.out
    assert mmfusion("config", "check", best).status == 0
    assert "AutoGraph" not in answer.err and "oneDNN" not in answer.err


def test_help_comes_at_once():
    for arguments in (["--help"], ["train", "--help"], ["--version"]):
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run(command(*arguments), check=True, capture_output=True, env=user_environment())
            seconds.append(time.perf_counter() - started)
        assert min(seconds) < 1.0, (arguments, seconds)


def test_help_imports_no_tensorflow():
    code = (
        "import sys\nfrom mmfusion.cli.main import run\ntry: run(['search', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules), 'heavy imports'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=user_environment())
