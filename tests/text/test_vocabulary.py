"""Vocabularies: trained, written, read and refused."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import tensorflow as tf

from mmfusion.errors import TextError
from mmfusion.text import (
    SPECIAL_TOKENS,
    WordPieceTokenizer,
    check_vocabulary,
    read_vocabulary,
    train_vocabulary,
    write_vocabulary,
)

SUBJECTS = ["man", "woman", "child", "dog", "cat", "horse", "skier", "surfer", "girl", "boy", "cyclist", "photographer"]
ACTIONS = [
    "running",
    "jumping",
    "sleeping",
    "swimming",
    "climbing",
    "waiting",
    "painting",
    "cooking",
    "dancing",
    "reading",
]
PLACES = ["park", "kitchen", "street", "forest", "river", "classroom", "mountain", "library", "stadium", "harbour"]
WORLD = [
    "走る男の人、濃い肌色",
    "一只狗在草地上奔跑。",
    "달리는 사람 어두운 피부",
    "رجل يركض في الحديقة",
    "مرد در حال دویدن",
    "бегущий человек на улице",
    "ένας σκύλος τρέχει",
    "a dog 🐶 and a 👍🏽",
]


def corpus() -> list[str]:
    return [f"A {s} is {a} near the {p}." for s in SUBJECTS for a in ACTIONS for p in PLACES]


def ordinary(text: str) -> str:
    """What a person expects back of an ordinary English caption."""
    return re.sub(r" ([.,])", r"\1", re.sub(r"\s+", " ", text).strip().lower())


def unknown_share(tokenizer: WordPieceTokenizer, texts: list[str]) -> float:
    ids, mask = tokenizer(texts)
    return float(tf.reduce_sum(tf.cast(ids == tokenizer.unk_id, tf.float32)) / tf.reduce_sum(tf.cast(mask, tf.float32)))


@pytest.mark.parametrize("size", [55, 70, 5000])
def test_captions_come_back_whatever_the_size(size: int) -> None:
    captions = corpus()
    vocabulary = train_vocabulary(captions, size=size)
    assert len(vocabulary) <= size
    assert vocabulary[:5] == list(SPECIAL_TOKENS)
    assert check_vocabulary(vocabulary) == vocabulary
    tokenizer = WordPieceTokenizer(vocabulary=vocabulary, max_length=80)
    found = tokenizer.detokenize(tokenizer(captions).token_ids).numpy()
    assert [text.decode() for text in found] == [ordinary(text) for text in captions]


def test_size_is_filled_and_buys_shorter_texts() -> None:
    captions = corpus()
    lengths = []
    for size in (55, 65, 75, 85):
        vocabulary = train_vocabulary(captions, size=size)
        assert len(vocabulary) == size
        mask = WordPieceTokenizer(vocabulary=vocabulary, max_length=80)(captions).token_mask
        lengths.append(int(tf.reduce_sum(tf.cast(mask, tf.int32))))
    assert lengths[0] > lengths[1] > lengths[2] > lengths[3]


def test_common_words_are_whole() -> None:
    vocabulary = train_vocabulary(corpus(), size=400)
    assert {*SUBJECTS, *ACTIONS, *PLACES} <= set(vocabulary)


def test_the_same_for_any_order_and_any_iterable() -> None:
    captions = corpus()
    expected = train_vocabulary(captions, size=70)
    shuffled = random.Random(0).sample(captions, len(captions))
    assert train_vocabulary((caption for caption in shuffled), size=70) == expected


@pytest.mark.parametrize("lowercase", [True, False])
def test_every_script_is_covered(lowercase: bool) -> None:
    vocabulary = train_vocabulary(WORLD, size=2000, lowercase=lowercase)
    tokenizer = WordPieceTokenizer(vocabulary=vocabulary, lowercase=lowercase)
    assert unknown_share(tokenizer, WORLD) == 0.0
    if not lowercase:
        found = tokenizer.detokenize(tokenizer(WORLD).token_ids).numpy()
        assert [text.decode() for text in found] == WORLD


def test_ideographs_and_punctuation_waste_no_continuation_forms() -> None:
    vocabulary = train_vocabulary(WORLD, size=2000)
    assert "狗" in vocabulary
    assert not {"##狗", "##。", "##."} & set(vocabulary)
    assert "##🐶" in vocabulary


def test_letters_and_digits_that_no_caption_had_are_known() -> None:
    tokenizer = WordPieceTokenizer(vocabulary=train_vocabulary(["a dog"], size=500))
    assert unknown_share(tokenizer, ["quick 7 zebras & 19-year-olds?!"]) == 0.0


def test_real_captions_that_training_never_saw(shared: Path) -> None:
    lines = (shared / "data" / "flickr8k" / "captions.jsonl").read_text("utf-8").splitlines()
    captions: dict[str, list[str]] = {"train": [], "val": []}
    for row in map(json.loads, lines):
        captions[row["split"]] += row["captions"]
    train, validation = captions["train"], captions["val"]
    vocabulary = train_vocabulary(train[:10_000], size=3000)
    assert len(vocabulary) == 3000
    tokenizer = WordPieceTokenizer(vocabulary=vocabulary, max_length=64)
    assert unknown_share(tokenizer, validation) == 0.0
    found = [text.decode() for text in tokenizer.detokenize(tokenizer(validation).token_ids).numpy()]
    # Captions with quotation marks or "dog 's" come back tidier than they were written.
    plain = [(text, back) for text, back in zip(validation, found, strict=True) if re.fullmatch(r"[\w\s,.-]+", text)]
    assert len(plain) > 0.95 * len(validation)
    assert [(text, back) for text, back in plain if ordinary(text) != back] == []


def test_names_of_emoji_in_every_language() -> None:
    emoji = pytest.importorskip("emoji")
    names: dict[str, list[str]] = {}
    for language in emoji.LANGUAGES:
        emoji.config.load_language(language)
        data = emoji.EMOJI_DATA.values()
        names[language] = [row[language].strip(":").replace("_", " ") for row in data if language in row]
    assert {"en", "ar", "ja", "zh", "ko", "fa", "ru"} <= set(names)
    # One name in five, all languages in one vocabulary: the others show what is left unknown.
    vocabulary = train_vocabulary([name for language in names.values() for name in language[::5]], size=8000)
    tokenizer = WordPieceTokenizer(vocabulary=vocabulary, max_length=48)
    for language, all_names in names.items():
        assert unknown_share(tokenizer, all_names[::5]) == 0.0, language
        assert unknown_share(tokenizer, all_names) < 0.03, language


def test_a_tiny_size_keeps_the_commonest_characters() -> None:
    vocabulary = train_vocabulary(["aaaa bbb c"], size=9)
    assert vocabulary == [*SPECIAL_TOKENS, "a", "b", "##a", "##b"]


def test_min_frequency_leaves_rare_words_in_pieces() -> None:
    captions = ["a dog"] * 5 + ["a xylophone"]
    assert "xylophone" in train_vocabulary(captions, size=500)
    assert "xylophone" not in train_vocabulary(captions, size=500, min_frequency=2)
    assert "dog" in train_vocabulary(captions, size=500, min_frequency=2)


@pytest.mark.parametrize(
    ("captions", "options", "message"),
    [
        ([], {}, "no words to train"),
        (["", " \t"], {}, "no words to train"),
        ("a dog", {}, "captions is one string"),
        (["a dog"], {"size": 5}, "size above 5"),
        (["a dog"], {"size": 6, "min_frequency": 0}, "min_frequency of at least 1"),
        (["dog"], {"size": 6}, "too small for a single character"),
    ],
)
def test_impossible_training_is_one_clear_error(captions: list[str], options: dict[str, int], message: str) -> None:
    with pytest.raises(TextError, match=message) as error:
        train_vocabulary(captions, **options)
    assert "\n" not in str(error.value)


def test_file_round_trip(tmp_path: Path) -> None:
    vocabulary = [*SPECIAL_TOKENS, "dog", "##s", "狗", "\u2028", "é", "#"]
    path = tmp_path / "vocab.txt"
    write_vocabulary(vocabulary, path)
    assert read_vocabulary(path) == vocabulary
    assert [file.name for file in tmp_path.iterdir()] == ["vocab.txt"]
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_vocabulary(path) == vocabulary
    path.write_bytes(path.read_bytes().removesuffix(b"\r\n"))
    assert read_vocabulary(path) == vocabulary


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read.*No such file"),
        (b"", r"no vocabulary.*found an empty one"),
        (b"[PAD]\n[UNK]\n[CLS]\ndog\n", r"lacks special tokens.*found no \[SEP\] among 4 tokens"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\ndog\ncat\ndog\n", "twice in the vocabulary.*'dog' as ids 4 and 6"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n\ndog\n", "empty or has a line break.*id 4"),
        (b"[PAD]\n\xff\xfe\n", "not text.*expected UTF-8"),
    ],
)
def test_a_bad_file_is_one_clear_error_that_names_it(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TextError, match=message) as error:
        WordPieceTokenizer.from_file(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="cannot be written"):
        write_vocabulary(SPECIAL_TOKENS, tmp_path / "absent" / "vocab.txt")
    with pytest.raises(TextError, match="line break"):
        write_vocabulary([*SPECIAL_TOKENS, "a\nb"], tmp_path / "vocab.txt")
