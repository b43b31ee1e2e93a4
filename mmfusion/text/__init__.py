"""Text to token ids and back, in the TensorFlow graph, and the vocabularies for it."""

from mmfusion.text.normalization import normalize, split_words, tidy
from mmfusion.text.vocabulary import (
    SPECIAL_TOKENS,
    check_vocabulary,
    read_vocabulary,
    train_vocabulary,
    write_vocabulary,
)
from mmfusion.text.wordpiece_tokenizer import TokenBatch, WordPieceTokenizer

__all__ = [
    "SPECIAL_TOKENS",
    "TokenBatch",
    "WordPieceTokenizer",
    "check_vocabulary",
    "normalize",
    "read_vocabulary",
    "split_words",
    "tidy",
    "train_vocabulary",
    "write_vocabulary",
]
