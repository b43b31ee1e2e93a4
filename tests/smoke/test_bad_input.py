"""Every bad input gets one clear line and a non-zero exit; nothing that was made is lost."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from smoke.command_line import QUICKSTART, TINY, TINY_MODEL, Answer, in_process_of_its_own

pytestmark = pytest.mark.slow

IMAGES_KINDS = ("truncated", "text", "missing")
CAPTION_KINDS = ("empty", "long")
LONG = "word " * 1000
SMALL_SET = (
    *TINY_MODEL, "data.source=jsonl", "train.batch_size=8", "train.epochs=1", "evaluation.rerank_top_k=2", "data.limit=null",
)  # fmt: skip


def assert_one_line(answer: Answer, *words: str) -> None:
    assert answer.status not in (0, 1), (answer.status, answer.err)
    assert len(answer.error_lines) == 1, answer.err
    line = answer.error_lines[0]
    assert line.startswith("error: ") and "Traceback" not in answer.err and "unexpected" not in line
    for word in words:
        assert word in line, line


def bad_rows(pictures, *kinds: str) -> list[dict[str, object]]:
    rows: dict[str, dict[str, object]] = {
        "truncated": {"image": str(pictures.bad["truncated"]), "captions": ["half a picture"]},
        "text": {"image": str(pictures.bad["text"]), "captions": ["no picture"]},
        "missing": {"image": "nowhere.jpg", "captions": ["nothing"]},
        "empty": {"image": "000.png", "captions": ["   "]},
        "long": {"image": "001.png", "captions": [LONG]},
    }
    return [rows[kind] for kind in kinds]


REASONS = {
    "truncated": "not a readable image",
    "text": "not a readable image",
    "missing": "cannot read the image",
    "empty": "caption 1 is empty",
    "long": "caption 1 has 4,999 characters",
}


def test_a_share_of_bad_rows_is_skipped_and_listed(pictures, make_training_set, mmfusion, tmp_path):
    kinds = (*IMAGES_KINDS, *CAPTION_KINDS)
    good = [{"image": str(path), "captions": [f"a {name} picture"]} for name, path in pictures.good.items()]
    path = make_training_set(bad_rows(pictures, *kinds) + good)
    run = tmp_path / "run"
    answer = mmfusion("train", QUICKSTART, *SMALL_SET, f"data.path={path}", "data.max_bad_share=0.2", "--run", run)
    assert answer.status == 0, answer.err
    assert "5 bad examples skipped" in answer.out
    listed = [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]
    found = {row["name"]: row["reason"] for row in listed}
    assert len(listed) == len(found) == 5
    for row, kind in enumerate(kinds, start=4):
        assert REASONS[kind] in found[f"captions.jsonl:{row}"], found
    # CMYK and 16 bits are not among them: those work.
    assert (run / "best.keras").is_file()


@pytest.mark.parametrize("kind", [*IMAGES_KINDS, *CAPTION_KINDS])
def test_past_the_share_training_stops_with_one_line(kind, pictures, make_training_set, mmfusion, tmp_path):
    path = make_training_set(bad_rows(pictures, kind), count=16)
    run = tmp_path / "run"
    arguments = ("train", QUICKSTART, *SMALL_SET, f"data.path={path}", "data.max_bad_share=0.01", "--run", run)
    answer = mmfusion(*arguments)
    lines = [line for line in answer.error_lines if line.startswith("error: ")]
    # Beside the error, training's own first line stands there.
    assert_one_line(answer._replace(err="\n".join(lines)), "too many bad examples", "captions.jsonl:4", REASONS[kind])
    assert answer.status == 2 and "Traceback" not in answer.err
    assert REASONS[kind] in (run / "quarantine.jsonl").read_text()


@pytest.mark.parametrize("kind", IMAGES_KINDS)
def test_caption_names_a_bad_picture(kind, export_folder, pictures, mmfusion, tmp_path):
    path = pictures.bad.get(kind, tmp_path / "missing.jpg")
    assert_one_line(mmfusion("caption", export_folder, path), str(path))


def test_caption_answers_for_the_others(trained, pictures, mmfusion):
    answer = mmfusion("caption", trained.folder, *pictures.bad.values(), *pictures.good.values())
    assert answer.status == 2
    assert len(answer.error_lines) == 2 and len(answer.out.splitlines()) == 3


def test_caption_of_a_folder_that_does_not_exist(export_folder, mmfusion, tmp_path):
    assert_one_line(mmfusion("caption", export_folder, tmp_path / "nowhere"), "nowhere", "No such file or directory")


def test_caption_of_an_empty_folder(export_folder, mmfusion, tmp_path):
    assert_one_line(mmfusion("caption", export_folder, tmp_path), str(tmp_path), "no pictures there")


@pytest.mark.parametrize("kind", ["truncated", "text"])
def test_search_of_a_folder_with_that_alone(kind, export_folder, pictures, mmfusion, tmp_path):
    shutil.copy(pictures.bad[kind], tmp_path)
    assert_one_line(mmfusion("search", export_folder, "a dog", tmp_path), f"{kind}.jpg", "not a readable image")


@pytest.mark.parametrize("text, words", [("", ["empty"]), ("  ", ["empty"]), (LONG, ["at most 2,000", "5,000"])])
def test_search_for_no_sentence(text, words, export_folder, pictures, mmfusion):
    assert_one_line(mmfusion("search", export_folder, text, pictures.folder), *words)


def test_search_of_a_folder_that_does_not_exist(export_folder, mmfusion, tmp_path):
    assert_one_line(mmfusion("search", export_folder, "a dog", tmp_path / "nowhere"), "nowhere", "no such folder")


@pytest.mark.parametrize(
    "override, words",
    [
        ("train.epoch=3", ["train.epoch", "did you mean train.epochs?"]),
        ("fusion.styl=cross", ["did you mean fusion.style?"]),
        ("model.image_encoder.num_heads=3", ["num_heads", "divisor of dim 16", "found 3"]),
        ("fusion.num_heads=5", ["fusion.num_heads", "divisor", "found 5"]),
        ("train.epochs=many", ["train.epochs", "many"]),
        ("train.batch_size=100", ["train.batch_size", "at most 64", "found 100"]),
        ("data.train_split=trian", ["trian", "train"]),
        ("train.epochs", ["section.key=value"]),
        ("tune.space.train.rate.min=1", ["tune.space"]),
    ],
)
def test_impossible_recipes(override, words, mmfusion, tmp_path):
    assert_one_line(mmfusion("train", QUICKSTART, *TINY, override, "--run", tmp_path / "run"), *words)


def test_another_recipe_in_the_same_folder(trained, mmfusion):
    answer = mmfusion("train", QUICKSTART, *TINY, "train.learning_rate=0.5", "--quick", "--run", trained.folder)
    assert_one_line(answer, "another recipe", "train", "--run")
    assert (trained.folder / "best.keras").is_file()


@pytest.mark.parametrize("command", ["caption", "search", "verify", "evaluate", "export"])
def test_a_folder_that_is_neither_run_nor_export(command, pictures, trained, mmfusion, tmp_path):
    folder = tmp_path / "nothing"
    folder.mkdir()
    more = {
        "caption": [pictures.good["plain"]],
        "search": ["a dog", pictures.folder],
        "verify": ["--run", trained.folder],
        "evaluate": [],
        "export": ["--output", tmp_path / "export"],
    }[command]
    assert_one_line(mmfusion(command, folder, *more), str(folder), "expected")
    assert_one_line(mmfusion(command, tmp_path / "nowhere", *more), "nowhere", "no such folder")
    assert not (tmp_path / "export").exists()


def test_a_broken_export(export_folder, pictures, mmfusion, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(export_folder, broken)
    graph = broken / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:1000])
    assert_one_line(mmfusion("caption", broken, pictures.good["plain"]), "broken export", str(broken))


def test_a_broken_model_file(trained, mmfusion, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(trained.folder, broken)
    model = broken / "best.keras"
    model.write_bytes(model.read_bytes()[:1000])
    assert_one_line(mmfusion("export", broken, "--output", tmp_path / "export"), "cannot load the model", "best.keras")


def test_a_wrong_command_line_is_one_line(mmfusion):
    assert_one_line(mmfusion("train"), "recipe", "mmfusion train --help")
    assert_one_line(mmfusion("caption", "--colour", "x"), "--colour")
    assert_one_line(mmfusion("trian"), "trian", "train")


def test_a_full_disk_while_a_checkpoint_is_written(full_disk):
    """A real file system of two megabytes: two checkpoints fit, the third does not; with room, the same command goes on."""
    run = full_disk / "run"
    arguments = (
        "train", QUICKSTART, *TINY, "model.text_encoder.dim=40", "fusion.num_heads=4", "train.checkpoint_every=2",
        "train.epochs=3", "train.validate_every=3", "train.keep=3", "--quick", "--run", run,
    )  # fmt: skip
    stopped = in_process_of_its_own(*arguments)
    errors = [line for line in stopped.error_lines if line.startswith("error: ")]
    assert stopped.status == 2 and len(errors) == 1 and "Traceback" not in stopped.err, stopped.err
    assert "cannot write a checkpoint" in errors[0] and "make room" in errors[0]
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept and all(name.startswith("step-") for name in kept)
    step = int(kept[-1].removeprefix("step-"))
    assert f"from step {step}" in errors[0]
    subprocess.run(["mount", "-o", "remount,size=60m", str(full_disk)], check=True)
    resumed = in_process_of_its_own(*arguments)
    assert resumed.status == 0 and f"continuing after step {step}" in resumed.err, resumed.err
    assert "12 steps" in resumed.out


@pytest.mark.parametrize("override", ["data.resize=crop", "data.image_size=48", "model.embedding_dim=3", "train.epochs=9"])
def test_evaluate_refuses_what_it_would_ignore(override, trained, mmfusion):
    answer = mmfusion("evaluate", trained.folder, override)
    (line,) = answer.error_lines
    assert answer.status == 2 and f"[{override.partition('=')[0]}]" in line and "evaluation.…" in line
