"""Exports of models of several images: signatures, answers in a fresh process, what is refused. Of clips, see the smoke tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from untrained import untrained_run
from warm_up_checks import replayed

from mmfusion.errors import DataError, ExportError
from mmfusion.export import export_model, load, verify_export
from mmfusion.training import load_run

pytestmark = pytest.mark.slow

ENCODER = {"patch_size": 8, "dim": 16, "depth": 1, "num_heads": 2}
TEXT = {"dim": 16, "depth": 1, "num_heads": 2}
DATA = {"source": "builtin", "image_size": [24, 32], "resize": "pad", "frames": 3}


def several_run(folder: Path) -> Path:
    model = {
        "embedding_dim": 12,
        "heads": ["contrastive", "matching", "captioning"],
        "image_encoder": {**ENCODER, "kind": "multi"},
        "text_encoder": TEXT,
    }
    fusion = {"depth": 1, "num_heads": 4}
    return untrained_run(folder, data=DATA, model=model, fusion=fusion, decoding={"method": "greedy"})


def pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in range(count)]


def encoded(images: list[Image.Image], format: str = "GIF") -> bytes:
    buffer = io.BytesIO()
    images[0].save(buffer, format, **({"save_all": True, "append_images": images[1:]} if format == "GIF" else {}))
    return buffer.getvalue()


def test_several_files_are_an_example(tmp_path):
    run = load_run(several_run(tmp_path / "run"))
    export = export_model(run, tmp_path / "export")
    comparisons = verify_export(export, run)
    assert all(comparison.passed for comparison in comparisons) and len(comparisons) == 9
    for answers in (load(export), load(tmp_path / "run")):
        one, two = (encoded([image], "PNG") for image in pictures(2))
        (tmp_path / "two.png").write_bytes(two)
        ordered, reverse, alone = answers.encode_image([[one, tmp_path / "two.png"], [two, one], one])
        assert np.abs(ordered - reverse).max() > 1e-5 and np.abs(ordered - alone).max() > 1e-5
        assert len(answers.caption([[one, two, one], one])) == 2
        with pytest.raises(DataError, match="1 to 3 pictures, found 4"):
            answers.match([[one] * 4], ["a dog"])
        with pytest.raises(DataError, match="not a readable image"):
            answers.caption([[one, b"text"]])
        with pytest.raises(ExportError, match="refused the input.*found one of several pictures moves: expected still ones$"):
            answers.caption([[one, encoded(pictures(2))]])
    signatures = tf.saved_model.load(str(export)).signatures
    assert signatures["match"].structured_input_signature[1]["image_bytes"].shape.as_list() == [None, None]
    assert replayed(export, signatures) == sorted(set(signatures) - {"serving_default"})
