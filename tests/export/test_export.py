"""Exports: what lies beside the model, how they are verified, and one interface over them and runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from untrained import untrained_run

from mmfusion.cli.export import export as export_command
from mmfusion.errors import DataError, ExportError
from mmfusion.explain import localise
from mmfusion.export import export_model, load, verify_export
from mmfusion.training import load_run

SIGNATURES = {"encode_image", "encode_text", "encode_text_ids", "match", "caption", "attend"}


def test_the_example_request_beside_it_runs(export, tmp_path):
    done = subprocess.run(
        [sys.executable, str(export / "examples" / "request.py")], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    for name in ("caption", "match", "encode_image", "attend"):
        assert name in done.stdout
    request = json.loads((export / "examples" / "request.json").read_text())
    assert request["signature_name"] == "caption" and "b64" in request["instances"][0]["image_bytes"]


def test_verification_finds_equal_and_different_models(export, run, pictures, tmp_path):
    files = []
    for number, picture in enumerate(pictures[:3]):
        files.append(tmp_path / f"{number}.img")
        files[-1].write_bytes(picture)
    rows = verify_export(export, run, images=files)
    assert {row.output.partition("/")[0] for row in rows} == SIGNATURES and all(row.passed for row in rows)
    keras.utils.set_random_seed(1)
    other = load_run(untrained_run(tmp_path / "other"))
    with pytest.raises(
        ExportError, match=r"not made from the model that is in .*other now .*untrained\]: expected weights \w{12},"
    ):
        verify_export(export, other, images=files)
    # One that does not say what it was made from.
    described = json.loads((export / "mmfusion.json").read_text())
    shutil.copytree(export, tmp_path / "silent")
    (tmp_path / "silent" / "mmfusion.json").write_text(json.dumps({**described, "weights": None}))
    assert not all(row.passed for row in verify_export(tmp_path / "silent", other, images=files))


def test_an_export_is_named_after_its_run_not_its_recipe(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("mmfusion.export.export_model", lambda _, output, **options: asked.append(output) or tmp_path)
    export_command(run.folder.path)
    monkeypatch.chdir(run.folder.path)
    export_command(Path())
    assert asked == [Path("saved_models/run")] * 2 and run.recipe.name == "untrained"


def test_a_model_without_a_head_leaves_its_signatures_out(tmp_path):
    run = load_run(untrained_run(tmp_path / "run", "contrastive"))
    model = tf.saved_model.load(str(export_model(run, tmp_path / "export")))
    assert set(model.signatures) - {"serving_default"} == {"encode_image", "encode_text", "encode_text_ids"}
    predictor = load(tmp_path / "export")
    assert "caption" not in predictor.signatures
    with pytest.raises(ExportError, match="caption"):
        predictor.caption([b""])


@pytest.mark.parametrize("kind", ["run", "export"])
def test_one_interface_over_runs_and_exports(kind, export, run, pictures, tmp_path):
    predictor = load(export if kind == "export" else run.folder.path)
    (tmp_path / "a.png").write_bytes(pictures[0])
    by_path, by_bytes = predictor.encode_image([tmp_path / "a.png"]), predictor.encode_image([pictures[0]])
    np.testing.assert_array_equal(by_path, by_bytes)
    attention = predictor.attend(pictures[0], "red heart")
    assert attention.maps.shape[-2:] == (3, 4) and attention.maps.shape[2] == len(attention.tokens)
    assert predictor.caption(pictures)[0].text == predictor.caption(pictures[:1])[0].text
    (tmp_path / "text.jpg").write_bytes(b"this is a text")
    with pytest.raises(DataError, match=r"not a readable image.*text\.jpg"):
        predictor.encode_image([pictures[0], tmp_path / "text.jpg"])
    with pytest.raises(DataError, match=r"away\.jpg"):
        predictor.caption([tmp_path / "away.jpg"])
    with pytest.raises(DataError, match="as many"):
        predictor.match(pictures, ["one"])


def test_what_is_no_list_or_no_text_is_told_before_it_is_read(export):
    predictor = load(export)
    for ask, message in (
        (lambda: predictor.caption("photo.jpg"), r"list is needed \[images\]: expected .*'photo.jpg'\], found 'photo.jpg'"),
        (lambda: predictor.encode_image(b"12"), r"list is needed \[images\].*found 2 bytes"),
        (lambda: predictor.encode_text("a dog"), r"list is needed \[texts\].*found 'a dog'"),
        (lambda: predictor.encode_text(["a dog", 3]), r"one text is needed \[texts\[1\]\]: expected a string, found 3"),
        (lambda: predictor.match("a.jpg", "a"), r"list is needed \[images\]"),
        (lambda: predictor.match(["a.jpg"], None), r"list is needed \[texts\].*found None"),
        (lambda: predictor.attend(["a.jpg"], ["a dog"]), r"one text is needed \[text\]: expected a string, found \['a dog'\]"),
        (lambda: predictor.attend(np.zeros((4, 4, 3)), "a dog"), r"no picture's file \[image\]: expected a path.*found ndarray"),
        (lambda: predictor.localise(3, "a dog"), r"no picture's file \[image\].*found 3"),
        (lambda: predictor.localise("a.jpg", ["a dog"]), r"one text is needed \[phrase\]"),
        (lambda: predictor.localise("a.jpg", " "), r"an empty phrase \[phrase\]: expected words to look for, found ' '"),
        (lambda: predictor.localise("a.jpg", "a", sentence=3), r"one text is needed \[sentence\]"),
    ):
        with pytest.raises(DataError, match=message):
            ask()


def test_what_stands_there_is_not_lost(export, run, tmp_path):
    with pytest.raises(ExportError, match="something already"):
        export_model(run, export)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    with pytest.raises(ExportError, match="no export of mmfusion"):
        export_model(run, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "precious"


def test_a_folder_that_is_no_export(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"no model")
    for folder in (tmp_path, tmp_path / "away"):
        with pytest.raises(ExportError, match="export"):
            load(folder)


@pytest.mark.parametrize("kind", ["run", "export"])
def test_a_phrase_is_located_alike_by_run_and_export(kind, export, run, pictures, tmp_path):
    predictor = load(export if kind == "export" else run.folder.path)
    found = predictor.localise(pictures[0], "red heart", sentence="a man red heart on sand")
    expected = localise(run.model, run.tokenizer, run.transform(tf.constant(pictures[0]))[None], ["red heart"],
                        sentences=["a man red heart on sand"])  # fmt: skip
    assert found.heat.shape == (3, 4)
    np.testing.assert_allclose(found.heat, expected.heat[0], atol=1e-3)
    np.testing.assert_allclose(found.score, expected.score[0], rtol=1e-4)
    if kind == "export":
        with pytest.raises(ExportError, match="expected method attention, found gradient; ask the run"):
            predictor.localise(pictures[0], "red heart", method="gradient")
    else:
        assert predictor.localise(pictures[0], "red heart", method="gradient").heat.shape == (3, 4)
    with pytest.raises(DataError, match="the phrase is not there"):
        predictor.localise(pictures[0], "blue", sentence="red heart")
    with pytest.raises(DataError, match=r"away\.jpg"):
        predictor.localise(tmp_path / "away.jpg", "red heart")
