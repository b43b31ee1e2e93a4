"""TensorFlow Serving's JSON, by the examples of its documentation and by what its parser refuses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tensorflow as tf

from mmfusion.errors import DataError
from mmfusion.serving import Limits
from mmfusion.serving.signature import Signature
from mmfusion.serving.wire import answer, read_predict, read_rows

TEXT = Signature("encode_text", dict, {"text": tf.TensorSpec([None], tf.string)}, {})
BOTH = Signature("match", dict, {"image_bytes": tf.TensorSpec([None], tf.string), "text": tf.TensorSpec([None], tf.string)}, {})
TOKENS = {"token_ids": tf.TensorSpec([None, None], tf.int32), "token_mask": tf.TensorSpec([None, None], tf.bool)}
IDS = Signature("encode_text_ids", dict, TOKENS, {})
FILES = Signature("caption", dict, {"image_bytes": tf.TensorSpec([None, None], tf.string)}, {})
LIMITS = Limits(max_instances=4)


def rows(signature: Signature, content: object) -> list[dict]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_rows(read_predict(body), signature, LIMITS)


def test_one_input_is_asked_with_and_without_its_name():
    expected = [{"text": b"foo"}, {"text": b"bar"}]
    assert rows(TEXT, {"instances": ["foo", "bar"]}) == expected
    assert rows(TEXT, {"instances": [{"text": "foo"}, {"text": {"b64": "YmFy"}}]}) == expected
    assert rows(TEXT, {"inputs": ["foo", {"b64": "YmFy"}]}) == expected
    assert rows(TEXT, {"inputs": {"text": ["foo", "bar"]}}) == expected
    assert rows(TEXT, {"instances": [{"b64": "Zm9v"}]}) == expected[:1]


def test_several_inputs_by_row_and_by_column():
    expected = [{"image_bytes": b"\xff\xd8", "text": b"a"}, {"image_bytes": b"BM", "text": "é".encode()}]
    by_row = [{"image_bytes": {"b64": "/9g="}, "text": "a"}, {"text": "é", "image_bytes": {"b64": "Qk0"}}]
    assert rows(BOTH, {"instances": by_row}) == expected
    assert rows(BOTH, {"inputs": {"image_bytes": [{"b64": "/9g="}, {"b64": "Qk0="}], "text": ["a", "é"]}}) == expected


def test_numbers_and_lists():
    (row,) = rows(IDS, {"instances": [{"token_ids": [2, 17, 3], "token_mask": [True, True, False]}]})
    assert row["token_ids"].dtype == np.int32 and row["token_ids"].tolist() == [2, 17, 3]
    assert row["token_mask"].dtype == bool and row["token_mask"].tolist() == [True, True, False]
    assert rows(FILES, {"instances": [[{"b64": "Qk0="}, ""]]}) == [{"image_bytes": [b"BM", b""]}]


@pytest.mark.parametrize(
    ("signature", "content", "told"),
    [
        (TEXT, b"", "not JSON [body]: expected a JSON object, found nothing"),
        (TEXT, b"{", "not JSON"),
        (TEXT, b'{"instances": ["\xff"]}', "not UTF-8 [body]: expected JSON in UTF-8, found byte 0xff at 16"),
        (TEXT, '{"instances": ["a"]}'.encode("utf-16"), "not UTF-8"),
        (TEXT, b"[" * 100_000, "nested too deeply"),
        (TEXT, b'{"instances": [' + b"1" * 5000 + b"]}", "not JSON"),
        (TEXT, ["a"], "expected a JSON object, found an array"),
        (TEXT, {}, 'expected one of "instances" and "inputs", found an empty object'),
        (TEXT, {"instances": ["a"], "inputs": ["a"]}, "found both"),
        (TEXT, {"instances": "a"}, "not a list of rows [instances]: expected an array, found a string"),
        (TEXT, {"instances": []}, "nothing was asked [instances]: expected 1 to 4, found 0"),
        (TEXT, {"instances": ["a"] * 5}, "too many rows [instances]: expected 1 to 4, found 5"),
        (TEXT, {"instances": ["a"], "signature_name": 3}, "not a signature's name [signature_name]: expected a string"),
        (TEXT, {"instances": [7]}, '[instances[0]: text]: expected a string, or {"b64": "…"}, found a number'),
        (TEXT, {"instances": [None]}, "found null"),
        (TEXT, {"instances": [["a"]]}, "found an array"),
        (TEXT, {"instances": ["\ud800"]}, "half of a surrogate pair"),
        (TEXT, {"instances": [{"b64": "a!"}]}, "invalid base64 [instances[0]: text]"),
        (TEXT, {"instances": [{"b64": "AAAAA"}]}, "invalid base64"),
        (TEXT, {"instances": [{"b64": 3}]}, "not the inputs of encode_text [instances[0]]: expected text, found b64"),
        (TEXT, {"instances": [{}]}, "expected text, found nothing"),
        (TEXT, {"inputs": "a"}, "not a column [inputs: text]: expected an array, a value a row, found a string"),
        (BOTH, {"instances": ["a"]}, "no name before a value [instances[0]]: expected image_bytes and text, found a string"),
        (BOTH, {"instances": [{"text": "a"}]}, "expected image_bytes and text, found text"),
        (BOTH, {"inputs": {"text": ["a"]}}, "not the inputs of match [inputs]: expected image_bytes and text, found text"),
        (BOTH, {"inputs": ["a"]}, "no name before a value [inputs]"),
        (BOTH, {"inputs": {"text": ["a", "b"], "image_bytes": ["a"]}}, "columns of different lengths [inputs]"),
        (IDS, {"instances": [{"token_ids": [1.5], "token_mask": [True]}]}, "[instances[0]: token_ids[0]]: expected int32"),
        (IDS, {"instances": [{"token_ids": [2**31], "token_mask": [True]}]}, "found a number beyond 32 bits"),
        (IDS, {"instances": [{"token_ids": [True], "token_mask": [True]}]}, "expected int32, found true or false"),
        (IDS, {"instances": [{"token_ids": [1], "token_mask": [1]}]}, "expected bool, found a number"),
        (IDS, {"instances": [{"token_ids": 1, "token_mask": True}]}, "not a list of values [instances[0]: token_ids]"),
        (IDS, {"instances": [{"token_ids": [], "token_mask": []}]}, "found 0 values"),
        (
            IDS,
            {"instances": [{"token_ids": [1], "token_mask": [True]}, {"token_ids": [1, 2], "token_mask": [True, True]}]},
            "rows of different lengths [instances[1]: token_ids]: expected 1, found 2",
        ),
    ],
)  # fmt: skip
def test_what_is_refused_and_how(signature, content, told):
    with pytest.raises(DataError) as error:
        rows(signature, content)
    assert told in str(error.value) and len(str(error.value)) < 500


def test_answers_look_as_documented():
    one = [{"caption": b"a dog"}, {"caption": "é".encode()}]
    assert answer(one, by_rows=True) == {"predictions": ["a dog", "é"]}
    assert answer(one, by_rows=False) == {"outputs": ["a dog", "é"]}
    several = [
        {"attention": np.float32([[0.5, 1.0]]), "tokens": np.array([b"a", b"b"], object)},
        {"attention": np.float32([[0.0, 0.25]]), "tokens": np.array([b"c", b"d"], object)},
    ]
    assert answer(several, by_rows=True) == {
        "predictions": [{"attention": [[0.5, 1.0]], "tokens": ["a", "b"]}, {"attention": [[0.0, 0.25]], "tokens": ["c", "d"]}]
    }
    assert answer(several, by_rows=False) == {
        "outputs": {"attention": [[[0.5, 1.0]], [[0.0, 0.25]]], "tokens": [["a", "b"], ["c", "d"]]}
    }
    assert answer([{"mask_bytes": b"\xff\xd8"}], by_rows=True) == {"predictions": [{"b64": "/9g="}]}
    assert math.isnan(json.loads(json.dumps(answer([{"score": np.float32("nan")}], by_rows=True)))["predictions"][0])
