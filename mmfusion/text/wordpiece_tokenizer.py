"""A WordPiece tokenizer that lives in the graph and in the SavedModel."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import keras

from mmfusion.errors import TextError
from mmfusion.text.normalization import UNKNOWN, load_tensorflow_text, normalize, split_words, tidy
from mmfusion.text.vocabulary import check_vocabulary, read_vocabulary, write_vocabulary

if TYPE_CHECKING:
    import tensorflow as tf

_PAD, _START, _END, _MASK = "[PAD]", "[CLS]", "[SEP]", "[MASK]"
# What BERT allows at the longest: a word has at most 100 characters of at most 4 bytes.
_MAX_WORD_BYTES = 400


class TokenBatch(NamedTuple):
    """A batch of texts as token ids.

    Attributes:
        token_ids: ``int32[B, T]``, ``[CLS] … [SEP]``, then padding.
        token_mask: ``bool[B, T]``, True = real token.
    """

    token_ids: tf.Tensor
    token_mask: tf.Tensor


@keras.saving.register_keras_serializable(package="mmfusion")
class WordPieceTokenizer(keras.layers.Layer):
    """Turns UTF-8 strings into BERT's WordPiece ids, and ids into strings.

    Each word is split greedily: the longest vocabulary entry that starts the word, then the longest ``##`` entry that
    continues it; a word that cannot be written so is ``[UNK]``. The ids equal Hugging Face `tokenizers`' with two known
    differences: a literal ``[MASK]`` (or another special token) in a text is plain text here, so that a caption cannot
    write control tokens; and marks that Unicode assigned after version 8 count as accents.

    The layer owns its vocabulary tables, so it works in `tf.data` maps, in `tf.function` and in a SavedModel, where the
    vocabulary is the asset ``vocab.txt``. A program that loads such a SavedModel must ``import tensorflow_text`` first.

    Args:
        vocabulary: The tokens, the id of each being its position; ``[PAD] [UNK] [CLS] [SEP]`` must be among them.
        lowercase: Whether to drop case and accents. Default True.
        max_length: Length T of every row, ``[CLS]`` and ``[SEP]`` included, at least 2. Default 64.

    Call arguments:
        text: ``string[B]`` (or one ``string[]``).

    Returns:
        A `TokenBatch` of ``token_ids: int32[B, T]`` and ``token_mask: bool[B, T]`` (without B for a single string).
        Longer texts are trimmed, ``[SEP]`` stays the last token.

    Raises:
        TextError: The vocabulary is empty, has a duplicate, or lacks a special token; or `max_length` is below 2.

    Example:
        >>> from mmfusion.text import WordPieceTokenizer
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "run", "##s", "."]
        >>> tokenizer = WordPieceTokenizer(vocabulary=words, max_length=8)
        >>> tokens = tokenizer(["A dog runs.", "A cat"])
        >>> tokens.token_ids.numpy().tolist()
        [[2, 4, 5, 6, 7, 8, 3, 0], [2, 4, 1, 3, 0, 0, 0, 0]]
        >>> tokenizer.detokenize(tokens.token_ids).numpy().tolist()
        [b'a dog runs.', b'a']

    Source: Devlin et al. 2018 (arXiv:1810.04805); Wu et al. 2016 (arXiv:1609.08144), section 4.1.
    """

    def __init__(self, *, vocabulary: Sequence[str], lowercase: bool = True, max_length: int = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        tokens = check_vocabulary(vocabulary)
        if max_length < 2:
            raise TextError("max_length is too short", expected="at least 2, for [CLS] and [SEP]", found=max_length)
        self.trainable = False
        # Strings come as lists, NumPy arrays and tensors: conversion is ours, as in keras.layers.TextVectorization.
        self._convert_input_args = False
        self._allow_non_tensor_positional_args = True
        self.supports_jit = False
        self.lowercase, self.max_length = lowercase, int(max_length)
        self._vocabulary = tuple(tokens)
        self.pad_id, self.unk_id = tokens.index(_PAD), tokens.index(UNKNOWN)
        self.start_id, self.end_id = tokens.index(_START), tokens.index(_END)
        self.mask_id = tokens.index(_MASK) if _MASK in tokens else None
        self._build_tables()
        self.built = True

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that are no words: [PAD], [UNK], [CLS], [SEP] and, where there is one, [MASK]."""
        ids = (self.pad_id, self.unk_id, self.start_id, self.end_id)
        return ids if self.mask_id is None else (*ids, self.mask_id)

    def _build_tables(self) -> None:
        import tensorflow as tf

        # Tables read a file, and not a constant, so that a SavedModel carries the vocabulary as an asset.
        folder = tempfile.mkdtemp(prefix="mmfusion-vocabulary-")
        # A `TemporaryDirectory` would warn that nobody closed it.
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path = str(Path(folder) / "vocab.txt")
        write_vocabulary(self._vocabulary, path)
        line, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
        with tf.init_scope():
            to_id = tf.lookup.TextFileInitializer(path, tf.string, line, tf.int64, number)
            to_token = tf.lookup.TextFileInitializer(path, tf.int64, number, tf.string, line)
            self._token_to_id = tf.lookup.StaticHashTable(to_id, default_value=self.unk_id)
            self._id_to_token = tf.lookup.StaticHashTable(to_token, default_value=UNKNOWN)
        self._pieces = load_tensorflow_text().WordpieceTokenizer(
            self._token_to_id, max_bytes_per_word=_MAX_WORD_BYTES, unknown_token=UNKNOWN
        )

    @classmethod
    def from_file(cls, path: str | Path, **kwargs: Any) -> WordPieceTokenizer:
        """Makes a tokenizer of a vocabulary file with one token a line.

        Args:
            path: The file, such as BERT's ``vocab.txt``.
            **kwargs: The constructor's other arguments.

        Raises:
            TextError: The file is missing or is no vocabulary.
        """
        return cls(vocabulary=read_vocabulary(path), **kwargs)

    def save(self, path: str | Path) -> None:
        """Writes the vocabulary to a file with one token a line."""
        write_vocabulary(self._vocabulary, path)

    @property
    def vocabulary(self) -> list[str]:
        """The tokens in the order of their ids."""
        return list(self._vocabulary)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens."""
        return len(self._vocabulary)

    def call(self, text: Any) -> TokenBatch:
        """Tokenizes, see the class."""
        import tensorflow as tf

        text = tf.convert_to_tensor(text, tf.string)
        if text.shape.rank == 0:
            single = self.call(text[tf.newaxis])
            return TokenBatch(single.token_ids[0], single.token_mask[0])
        if text.shape.rank not in (None, 1):
            raise TextError("text has the wrong shape", expected="string[B]", found=f"string{text.shape.as_list()}")
        text = tf.reshape(text, [-1])
        words = split_words(normalize(text, lowercase=self.lowercase))
        pieces = self._pieces.tokenize(words).merge_dims(-2, -1)[:, : self.max_length - 2]
        # Core operations only from here: tensorflow_text's trimming op is missing in some servers.
        column = tf.ones_like(text, tf.int64)[:, tf.newaxis]
        ids = tf.concat([column * self.start_id, pieces, column * self.end_id], axis=1)
        shape = [None, self.max_length]
        token_ids = tf.cast(ids.to_tensor(default_value=self.pad_id, shape=shape), tf.int32)
        # From the lengths and not from the ids, so that nothing hangs on what the padding looks like.
        return TokenBatch(token_ids, tf.sequence_mask(ids.row_lengths(), self.max_length))

    def id_to_token(self, token_ids: Any) -> tf.Tensor:
        """Looks up tokens as the vocabulary writes them.

        Args:
            token_ids: ``int[...]``.

        Returns:
            ``string[...]``; an id outside of the vocabulary gives ``[UNK]``.
        """
        import tensorflow as tf

        return self._id_to_token.lookup(tf.cast(tf.convert_to_tensor(token_ids), tf.int64))

    def detokenize(self, token_ids: Any) -> tf.Tensor:
        """Writes token ids as text: no special tokens, ``##`` joined, spacing tidy, Unicode composed.

        Args:
            token_ids: ``int[B, T]``.

        Returns:
            ``string[B]``.
        """
        import tensorflow as tf

        ids = tf.cast(tf.convert_to_tensor(token_ids), tf.int32)
        tokens = self.id_to_token(ids)
        dropped = tf.reduce_any(ids[..., tf.newaxis] == tf.constant(self.special_ids), axis=-1) | (tokens == UNKNOWN)
        # Empty strings leave runs of spaces behind, that would keep the pieces of a word apart.
        spaced = tf.strings.reduce_join(tf.where(dropped, "", tf.strings.join([" ", tokens])), axis=-1)
        text = tidy(tf.strings.regex_replace(spaced, " ##", ""))
        if self.lowercase:
            # Dropping the accents took Korean syllables apart; people and metrics want them whole.
            text = load_tensorflow_text().normalize_utf8(text, "NFC")
        return text

    def compute_output_spec(self, text: Any) -> TokenBatch:
        """Says shapes and types for a symbolic input."""
        shape = (*tuple(text.shape), self.max_length)
        return TokenBatch(keras.KerasTensor(shape, "int32"), keras.KerasTensor(shape, "bool"))

    def get_config(self) -> dict[str, Any]:
        """Gives the constructor's arguments, the vocabulary among them."""
        config: dict[str, Any] = super().get_config()
        return config | {
            "vocabulary": self.vocabulary,
            "lowercase": self.lowercase,
            "max_length": self.max_length,
        }
