"""The tokenizer: ids, trimming, padding, hard input, and every place where it has to work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from mmfusion.errors import TextError
from mmfusion.text import SPECIAL_TOKENS, TokenBatch, WordPieceTokenizer, read_vocabulary

VOCABULARY = [
    *SPECIAL_TOKENS,
    *[
        "a",
        "dog",
        "dogs",
        "run",
        "##s",
        "##ning",
        ".",
        ",",
        "'",
        "-",
        "istanbul",
        "#",
        "狗",
        "…",
        "cafe",
        "Café",
        "😀",
        "##😀",
        "i",
        "##i",
    ],
]
TEXTS = ["A dog runs.", "", "ISTANBUL Café… 狗 zebra 😀", "a " * 40]


@pytest.fixture
def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer(vocabulary=VOCABULARY, max_length=12)


def tokens_of(tokenizer: WordPieceTokenizer, text: str | bytes) -> list[str]:
    ids, mask = tokenizer([text])
    return [token.decode() for token in tokenizer.id_to_token(ids[mask]).numpy()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog runs.", ["a", "dog", "run", "##s", "."]),
        ("dogs", ["dogs"]),
        ("dogss", ["dogs", "##s"]),
        ("dogzz dog", ["[UNK]", "dog"]),
        ("", []),
        ("  \n ", []),
        ("café CAFÉ", ["cafe", "cafe"]),
        ("狗狗", ["狗", "狗"]),
        ("😀😀", ["😀", "##😀"]),
        ("a…", ["a", "…"]),
        (b"a\xff dog\xc3", ["a", "dog"]),
        (b"a\xff dog\xf0\x9f", ["a", "dog"]),
        ("[MASK] [SEP]", ["[UNK]"] * 6),
        ("##s #", ["#", "#", "[UNK]", "#"]),
        ("i" * 100, ["i", *["##i"] * 9]),
        ("i" * 101, ["[UNK]"]),
    ],
)
def test_tokens(tokenizer: WordPieceTokenizer, text: str | bytes, expected: list[str]) -> None:
    assert tokens_of(tokenizer, text) == ["[CLS]", *expected, "[SEP]"]


def test_a_batch_is_padded_and_masked(tokenizer: WordPieceTokenizer) -> None:
    batch = tokenizer(["a dog", ""])
    assert isinstance(batch, TokenBatch)
    assert (batch.token_ids.dtype, batch.token_mask.dtype) == (tf.int32, tf.bool)
    np.testing.assert_array_equal(batch.token_ids, [[2, 5, 6, 3] + [0] * 8, [2, 3] + [0] * 10])
    np.testing.assert_array_equal(tf.reduce_sum(tf.cast(batch.token_mask, tf.int32), axis=1), [4, 2])


def test_ids_are_line_numbers_whatever_the_order() -> None:
    vocabulary = ["dog", "[SEP]", "a", "[PAD]", "[CLS]", "[UNK]"]
    tokenizer = WordPieceTokenizer(vocabulary=vocabulary, max_length=6)
    ids, mask = tokenizer(["a dog x"])
    assert ids.numpy().tolist() == [[4, 2, 0, 5, 1, 3]]
    assert mask.numpy().tolist() == [[True] * 5 + [False]]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.start_id, tokenizer.end_id) == (3, 5, 4, 1)
    assert tokenizer.mask_id is None
    assert (tokenizer.vocabulary, tokenizer.vocabulary_size) == (vocabulary, 6)


@pytest.mark.parametrize("text", ["a " * 2500, "i" * 5000, "狗" * 5000, "a." * 2500])
def test_a_long_text_keeps_its_start_and_its_end_token(tokenizer: WordPieceTokenizer, text: str) -> None:
    ids, mask = tokenizer([text, "a"])
    if "i" not in text:
        assert bool(tf.reduce_all(mask[0]))
        assert int(ids[0, -1]) == tokenizer.end_id
        assert tokenizer.unk_id not in ids[0]
    assert int(ids[0, 0]) == tokenizer.start_id
    assert tokens_of(tokenizer, "a") == ["[CLS]", "a", "[SEP]"]


def test_what_a_text_shares_a_batch_with_changes_nothing(tokenizer: WordPieceTokenizer) -> None:
    together = tokenizer(TEXTS).token_ids.numpy()
    alone = np.concatenate([tokenizer([text]).token_ids.numpy() for text in TEXTS])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("convert", [list, np.array, lambda texts: np.array(texts, object), tf.constant])
def test_lists_arrays_and_tensors(tokenizer: WordPieceTokenizer, convert: type) -> None:
    np.testing.assert_array_equal(tokenizer(convert(TEXTS)).token_ids, tokenizer(TEXTS).token_ids)


def test_one_string_and_no_string(tokenizer: WordPieceTokenizer) -> None:
    assert tokenizer("a dog").token_ids.shape == (12,)
    assert tokenizer(tf.constant([], tf.string)).token_ids.shape == (0, 12)
    with pytest.raises(TextError, match=r"expected string\[B\], found string\[1, 1\]"):
        tokenizer([["a"]])


def test_case_and_accents_are_kept_when_asked() -> None:
    tokenizer = WordPieceTokenizer(vocabulary=VOCABULARY, max_length=12, lowercase=False)
    assert tokens_of(tokenizer, "Café cafe A") == ["[CLS]", "Café", "cafe", "[UNK]", "[SEP]"]


def test_impossible_arguments_are_one_clear_error() -> None:
    with pytest.raises(TextError, match=r"max_length is too short.*at least 2"):
        WordPieceTokenizer(vocabulary=VOCABULARY, max_length=1)
    with pytest.raises(TextError, match=r"no vocabulary.*found an empty one"):
        WordPieceTokenizer(vocabulary=[])
    with pytest.raises(TextError, match="found one string"):
        WordPieceTokenizer(vocabulary="vocab.txt")
    with pytest.raises(TextError, match=r"found no \[CLS\]"):
        WordPieceTokenizer(vocabulary=[token for token in VOCABULARY if token != "[CLS]"])
    assert tokens_of(WordPieceTokenizer(vocabulary=VOCABULARY, max_length=2), "a dog") == ["[CLS]", "[SEP]"]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("[CLS] a dog run ##s . [SEP] [PAD]", "a dog runs."),
        ("[CLS] [SEP] [PAD]", ""),
        ("run [MASK] ##s [UNK] ##ning dog", "runsning dog"),
        ("##s a", "s a"),
        ("a dogs ' run", "a dogs' run"),
        ("a dog - run ##ning", "a dog-running"),
        ("狗 狗 …", "狗狗…"),
    ],
)
def test_detokenize(tokenizer: WordPieceTokenizer, tokens: str, expected: str) -> None:
    ids = [VOCABULARY.index(token) for token in tokens.split()]
    assert tokenizer.detokenize(tf.constant([ids])).numpy()[0].decode() == expected


def test_ids_outside_of_the_vocabulary_are_unknown(tokenizer: WordPieceTokenizer) -> None:
    ids = np.array([[5, 999, -1]], "int64")
    assert tokenizer.id_to_token(ids).numpy().tolist() == [[b"a", b"[UNK]", b"[UNK]"]]
    assert tokenizer.detokenize(ids).numpy().tolist() == [b"a"]


def test_korean_comes_back_in_syllables() -> None:
    text = "사람"
    first, *others = unicodedata.normalize("NFD", text)
    assert len(others) == 4
    pieces = [*SPECIAL_TOKENS, first, *[f"##{letter}" for letter in sorted(set(others))]]
    tokenizer = WordPieceTokenizer(vocabulary=pieces, max_length=8)
    assert tokenizer.detokenize(tokenizer([text]).token_ids).numpy()[0].decode() == text


def test_in_a_data_set_and_in_a_function(tokenizer: WordPieceTokenizer) -> None:
    expected = tokenizer(TEXTS).token_ids.numpy()
    data = tf.data.Dataset.from_tensor_slices(TEXTS)
    batched = data.batch(2).map(tokenizer, num_parallel_calls=2)
    assert batched.element_spec.token_ids.shape.as_list() == [None, 12]
    np.testing.assert_array_equal(np.concatenate([batch.token_ids for batch in batched]), expected)
    np.testing.assert_array_equal([one.token_ids for one in data.map(tokenizer)], expected)
    np.testing.assert_array_equal(tf.function(tokenizer)(tf.constant(TEXTS)).token_ids, expected)


def test_under_two_replicas(two_devices: tf.distribute.Strategy) -> None:
    with two_devices.scope():
        tokenizer = WordPieceTokenizer(vocabulary=VOCABULARY, max_length=12)
    data = tf.data.Dataset.from_tensor_slices(TEXTS).batch(4).map(tokenizer)
    (batch,) = list(two_devices.experimental_distribute_dataset(data))
    parts = two_devices.experimental_local_results(batch.token_ids)
    np.testing.assert_array_equal(np.concatenate(parts), tokenizer(TEXTS).token_ids)


def test_a_global_bfloat16_policy_changes_nothing(tokenizer: WordPieceTokenizer) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        other = WordPieceTokenizer(vocabulary=VOCABULARY, max_length=12)
        np.testing.assert_array_equal(other(TEXTS).token_ids, tokenizer(TEXTS).token_ids)
    finally:
        keras.config.set_dtype_policy("float32")


def test_config_and_file_round_trips(tmp_path: Path) -> None:
    tokenizer = WordPieceTokenizer(vocabulary=VOCABULARY, max_length=9, lowercase=False, name="words")
    config = json.loads(json.dumps(tokenizer.get_config()))
    restored = WordPieceTokenizer.from_config(config)
    assert restored.get_config() == tokenizer.get_config()
    tokenizer.save(tmp_path / "vocab.txt")
    from_file = WordPieceTokenizer.from_file(tmp_path / "vocab.txt", max_length=9, lowercase=False)
    assert from_file.vocabulary == VOCABULARY
    for other in (restored, from_file):
        np.testing.assert_array_equal(other(TEXTS).token_ids, tokenizer(TEXTS).token_ids)
    assert tokenizer.weights == []


def test_inside_a_keras_model_and_its_file(tokenizer: WordPieceTokenizer, tmp_path: Path) -> None:
    text = keras.Input((), dtype="string")
    tokens = tokenizer(text)
    assert (tokens.token_ids.shape, tokens.token_ids.dtype, tokens.token_mask.dtype) == ((None, 12), "int32", "bool")
    model = keras.Model(text, [tokens.token_ids, tokens.token_mask])
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    for found, expected in zip(restored(tf.constant(TEXTS)), tokenizer(TEXTS), strict=True):
        np.testing.assert_array_equal(found, expected)


class Service(tf.Module):
    """What somebody would write around the layer."""

    def __init__(self, tokenizer: WordPieceTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def encode(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        ids, mask = self.tokenizer(text)
        return {"ids": ids, "mask": mask, "text": self.tokenizer.detokenize(ids)}


CLIENT = """
import json, sys
import tensorflow as tf, tensorflow_text
texts, folders = json.loads(sys.argv[1]), sys.argv[2:]
answers = []
for folder in folders:
    encode = tf.saved_model.load(folder).signatures["encode"]
    answer = encode(text=tf.constant(texts))
    answers.append({"ids": answer["ids"].numpy().tolist(), "text": [t.decode() for t in answer["text"].numpy()]})
assert "mmfusion" not in sys.modules and "keras" not in json.dumps(folders)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two kinds of SavedModel, moved after they were written, by a tokenizer that is gone."""
    folder = tmp_path_factory.mktemp("exports")
    tokenizer = WordPieceTokenizer(vocabulary=VOCABULARY, max_length=12)
    service = Service(tokenizer)
    tf.saved_model.save(service, str(folder / "draft-module"), signatures={"encode": service.encode})
    archive = keras.export.ExportArchive()
    archive.track(tokenizer)
    archive.add_endpoint(
        "encode",
        lambda text: {"ids": tokenizer(text).token_ids, "text": tokenizer.detokenize(tokenizer(text).token_ids)},
        input_signature=[tf.TensorSpec([None], tf.string, name="text")],
    )
    archive.write_out(str(folder / "draft-archive"), verbose=False)
    return [(folder / f"draft-{kind}").rename(folder / kind) for kind in ("module", "archive")]


def test_a_fresh_process_gives_the_same_ids_even_in_turkey(exports: list[Path], tokenizer: WordPieceTokenizer) -> None:
    # In a Turkish locale ICU turns I into a dotless letter, unless it is told not to.
    environment = {**os.environ, "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "PYTHONPATH": ""}
    client = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(TEXTS), *map(str, exports)],
        capture_output=True, text=True, env=environment, cwd=exports[0].parent, check=False,
    )  # fmt: skip
    assert client.returncode == 0, client.stderr[-2000:]
    ids = tokenizer(TEXTS).token_ids
    expected = {"ids": ids.numpy().tolist(), "text": [text.decode() for text in tokenizer.detokenize(ids).numpy()]}
    assert json.loads(client.stdout) == [expected, expected]
    assert VOCABULARY.index("istanbul") in ids[2]


def test_the_vocabulary_of_an_export_is_a_file(exports: list[Path]) -> None:
    for export in exports:
        assert read_vocabulary(export / "assets" / "vocab.txt") == VOCABULARY
