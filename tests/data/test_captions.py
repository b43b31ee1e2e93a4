"""What counts as a caption."""

from __future__ import annotations

import pytest

from mmfusion.data.captions import MAX_CHARACTERS, clean_captions


@pytest.mark.parametrize(
    ("captions", "good", "reasons"),
    [
        ("a dog", ("a dog",), []),
        (["  a\tdog \n runs. ", "two"], ("a dog runs.", "two"), []),
        (("one",), ("one",), []),
        (["a\0dog"], ("a dog",), []),
        (["x" * MAX_CHARACTERS], ("x" * MAX_CHARACTERS,), []),
        (["犬が走る", "café \U0001f415"], ("犬が走る", "café \U0001f415"), []),
        (["one", "one"], ("one", "one"), []),
        ([], (), ["no caption"]),
        ("", (), ["caption 1 is empty"]),
        (["one", " \u3000\n"], ("one",), ["caption 2 is empty"]),
        (["x" * 5000], (), ["caption 1 has 5,000 characters, more than 2,000"]),
        ([1, None, "x"], ("x",), ["caption 1: expected a string, found int", "caption 2: expected a string, found NoneType"]),
        (["\ud83d"], (), ["caption 1 is not valid Unicode"]),
        (None, (), ["captions: expected a string or a list of strings, found NoneType"]),
        ({"en": "x"}, (), ["captions: expected a string or a list of strings, found dict"]),
        (3.5, (), ["captions: expected a string or a list of strings, found float"]),
    ],
)
def test_clean_captions(captions, good, reasons):
    assert clean_captions(captions) == (good, reasons)


def test_bytes_are_no_captions():
    assert clean_captions(b"a dog") == ((), ["captions: expected a string or a list of strings, found bytes"])
