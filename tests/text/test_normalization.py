"""BERT's normalisation, character by character, and its reverse."""

from __future__ import annotations

import importlib
import re
import unicodedata

import pytest
import tensorflow as tf

from mmfusion.errors import TextError
from mmfusion.text import normalize, split_words, tidy
from mmfusion.text.normalization import load_tensorflow_text


def words_of(text: str | bytes, lowercase: bool = True) -> list[str]:
    (row,) = split_words(normalize(tf.constant([text]), lowercase=lowercase)).to_list()
    return [word.decode() for word in row]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \t\r\n\u00a0\u3000 ", ""),
        ("A  Dog\u2028RUNS", "a dog runs"),
        ("zero\u200bwidth soft\u00adhyphen nul\x00 bell\x07", "zerowidth softhyphen nul bell"),
        ("Café naïve Ångström Đà Nẵng", "cafe naive angstrom đa nang"),
        ("ISTANBUL İstanbul", "istanbul istanbul"),
        ("ΟΔΟΣ ΣΑΣ", "οδοσ σασ"),
        ("Straße … ﬁ ① ½", "straße … ﬁ ① ½"),
        (b"caf\xc3\xa9 \xff\xfe dog\xc3", "cafe dog"),
    ],
)
def test_normalize(text: str | bytes, expected: str) -> None:
    assert re.sub(" +", " ", normalize(text).numpy().decode()) == expected


def test_case_and_accents_stay_when_asked() -> None:
    assert normalize("Café ÅNGSTRÖM", lowercase=False).numpy().decode() == "Café ÅNGSTRÖM"


def test_lowercase_equals_pythons_for_every_latin_greek_and_cyrillic_letter() -> None:
    letters = [chr(code) for code in [*range(0x41, 0x590), *range(0x1E00, 0x2000)] if chr(code).isalpha()]
    found = [text.decode() for text in normalize(tf.constant(letters)).numpy()]
    for letter, lowered in zip(letters, found, strict=True):
        bare = "".join(mark for mark in unicodedata.normalize("NFD", letter) if unicodedata.category(mark) != "Mn")
        assert lowered == "".join(character.lower() for character in bare), hex(ord(letter))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog's t-shirt, isn't it?", ["a", "dog", "'", "s", "t", "-", "shirt", ",", "isn", "'", "t", "it", "?"]),
        ("[MASK] $5 a_b", ["[", "mask", "]", "$", "5", "a", "_", "b"]),
        ("一只狗run跑", ["一", "只", "狗", "run", "跑"]),
        ("走る人。", ["走", "る", "人", "。"]),
        ("رجل يركض، سريع", ["رجل", "يركض", "،", "سريع"]),
        ("dog🐶👍🏽!", ["dog🐶👍🏽", "!"]),
        ("x" * 100, ["x" * 100]),
        ("é" * 101 + " b", ["[UNK]", "b"]),
    ],
)
def test_split_words(text: str, expected: list[str]) -> None:
    assert words_of(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "a man's t-shirt, isn't it?",
        'she says "hello there" (twice); then: 3.5 dogs!',
        "the dogs' owner and one o'clock",
        "l'homme qu'on voit, d'été",
        "l’homme s’incline, dell’acqua",
        "стрелка «назад»",
        "un “ok”",
        "50% black/white in the U.S.A. and Washington D.C.",
        "一只狗在草地上。",
        "走る男の人、速い",
        "¿qué? ¡sí!",
    ],
)
def test_tidy_undoes_the_splitting(text: str) -> None:
    assert tidy(" ".join(words_of(text, lowercase=False))).numpy().decode() == text


def test_a_missing_tensorflow_text_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.import_module

    def refuse(name: str, *arguments: object) -> object:
        if name == "tensorflow_text":
            raise ImportError("no such library")
        return original(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(TextError, match=r"tensorflow_text cannot be imported.*install tensorflow-text"):
        load_tensorflow_text()
