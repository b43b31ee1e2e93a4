"""Captions around a runtime: what it is asked, of how many rows, and what becomes of its errors."""

from __future__ import annotations

import numpy as np
import pytest

from mmfusion.errors import ExportError
from mmfusion.export.fixed_batch import FixedBatch
from mmfusion.export.portable_captions import PortableCaptions

DECODING = {
    "options": {"method": "greedy"}, "max_tokens": 3, "min_tokens": 0, "start_id": 2, "end_id": 3, "pad_id": 0,
    "forbidden_ids": [2],
}  # fmt: skip
CARRIED = {"state_00": "next_state_00", "state_01": None, "state_02": "next_state_02"}


class Counting:
    """Says first what the pixels say, then one more at each token; its state is the last word, the pixels and a scalar."""

    def __init__(self, fails_at=None):
        self.rows, self.fails_at = [], fails_at

    def run(self, function, inputs):
        if function == "caption_start":
            pixels = inputs["pixels"]
            return {"state_00": pixels, "state_01": np.zeros_like(pixels), "state_02": np.array(0, "int32")}
        self.rows.append(len(inputs["token_ids"]))
        if inputs["state_02"] == self.fails_at:
            raise ValueError("no more today\nbut tomorrow")
        words = inputs["state_00"]
        logits = np.eye(9, dtype="float32")[words]
        return {"logits": logits, "next_state_00": words + 1, "next_state_02": np.array(inputs["state_02"] + 1, "int32")}


def pixels(*values):
    return {"pixels": np.array(values, "int32")}


def test_each_row_is_written_and_batches_are_of_few_sizes():
    runtime = Counting()
    captions = PortableCaptions(runtime, DECODING, CARRIED, 9)
    assert captions(pixels(4, 5, 6)).token_ids.numpy().tolist() == [[4, 5, 6], [5, 6, 7], [6, 7, 8]]
    assert captions(pixels(5)).token_ids.numpy().tolist() == [[5, 6, 7]]
    assert runtime.rows == [4] * 3 + [1] * 3


def test_beams_are_rows_of_their_picture():
    decoding = {**DECODING, "options": {"method": "beam", "beam_size": 2}}
    found = PortableCaptions(Counting(), decoding, CARRIED, 9)(pixels(4, 6))
    assert found.token_ids.numpy()[:, 0].tolist() == [[4, 5, 6], [6, 7, 8]]


@pytest.mark.parametrize(("pictures", "asked"), [((4, 5, 6), [3]), ((4, 5), [3]), ((4, 5, 6, 5), [3, 3])])
def test_functions_of_one_batch_size_are_asked_no_oftener_than_they_must(pictures, asked):
    runtime = Counting()
    captions = PortableCaptions(FixedBatch(runtime, 3), DECODING, CARRIED, 9, batch_size=3)
    assert captions(pixels(*pictures)).token_ids.numpy()[:, 0].tolist() == list(pictures)
    assert runtime.rows == asked * 3


def test_what_the_runtime_fails_with_is_said():
    captions = PortableCaptions(Counting(fails_at=1), DECODING, CARRIED, 9)
    with pytest.raises(ExportError, match=r"the runtime fails \[caption_step\]: found no more today$") as told:
        captions(pixels(4, 5))
    assert isinstance(told.value.__cause__, ValueError)
