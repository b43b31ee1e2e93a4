"""WordPiece vocabularies: learn one from captions, write it, read it, check it."""

from __future__ import annotations

import itertools
import os
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmfusion.errors import TextError
from mmfusion.text.normalization import ISOLATED_CHARACTER, UNKNOWN, load_tensorflow_text, normalize, split_words

SPECIAL_TOKENS = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
_REQUIRED = SPECIAL_TOKENS[:4]
_CONTINUATION = "##"
_BATCH = 4096
_MAX_PIECE = 50


def train_vocabulary(captions: Iterable[str], *, size: int = 8000, lowercase: bool = True, min_frequency: int = 1) -> list[str]:
    """Learns a WordPiece vocabulary from captions, the same for the same captions in any order.

    Words are split as `WordPieceTokenizer` splits them. The vocabulary holds the special tokens, then the alphabet
    (each character that occurs, and printable ASCII, at the start and inside of words), then the most useful pieces.

    Args:
        captions: The texts; read once, so a generator is fine.
        size: Most tokens that the vocabulary may have; it has fewer when the captions do not give more. Default 8000.
        lowercase: Whether to drop case and accents, as in the tokenizer to be used. Default True.
        min_frequency: How often a piece must occur; characters are kept anyway. Default 1.

    Returns:
        The tokens, ``[PAD]`` first.

    Raises:
        TextError: There is no word in the captions, or `size` leaves no room for characters.

    Example:
        >>> from mmfusion.text import WordPieceTokenizer, train_vocabulary
        >>> captions = ["a dog runs", "two dogs run", "a cat runs"]
        >>> vocabulary = train_vocabulary(captions, size=200)
        >>> vocabulary[:5], "runs" in vocabulary
        (['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'], True)
        >>> tokenizer = WordPieceTokenizer(vocabulary=vocabulary, max_length=16)
        >>> tokenizer.detokenize(tokenizer(["a zebra runs"]).token_ids).numpy().tolist()
        [b'a zebra runs']

    Source: the top-down learner of tensorflow_text, `tensorflow_text.tools.wordpiece_vocab`.
    """
    if isinstance(captions, (str, bytes)):
        raise TextError("captions is one string", expected="an iterable of strings", fix="put it into a list")
    room = size - len(SPECIAL_TOKENS)
    if room < 1 or min_frequency < 1:
        raise TextError(
            "the vocabulary cannot be trained",
            expected=f"size above {len(SPECIAL_TOKENS)} and min_frequency of at least 1",
            found=f"size {size} and min_frequency {min_frequency}",
        )
    counts = _count_words(captions, lowercase)
    if not counts:
        raise TextError("no words to train a vocabulary on", expected="captions with text", found="none")

    alphabet = _alphabet(counts, room)
    characters = {token for token in alphabet if len(token) == 1}
    # The commonest pieces come first, so that cutting drops the rarest.
    pieces = _learn(counts, characters, room - len(alphabet), min_frequency)
    return [*SPECIAL_TOKENS, *alphabet, *pieces][:size]


def _count_words(captions: Iterable[str], lowercase: bool) -> dict[str, int]:
    """Counts words, in alphabetical order so that nothing hangs on the order of the captions."""
    import tensorflow as tf

    counts: Counter[bytes] = Counter()
    iterator = iter(captions)
    while batch := list(itertools.islice(iterator, _BATCH)):
        words = split_words(normalize(tf.constant(batch, tf.string), lowercase=lowercase)).flat_values
        unique, _, number = tf.unique_with_counts(words)
        for word, occurrences in zip(unique.numpy().tolist(), number.numpy().tolist(), strict=True):
            counts[word] += occurrences
    counts.pop(UNKNOWN.encode(), None)
    return {word.decode(): counts[word] for word in sorted(counts)}


def _alphabet(counts: dict[str, int], room: int) -> list[str]:
    """Chooses one-character tokens, the commonest that fit, in alphabetical order."""
    import tensorflow as tf

    frequency: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            frequency[character] += count
    occurring = sorted(frequency, key=lambda character: (-frequency[character], character))
    # So that a word with a digit or a letter that these captions lack is not unknown; only where there is much room.
    ascii_only = [character for character in string.printable.strip() if character not in frequency]
    lowered = [character for character in ascii_only if not character.isupper()]
    candidates = [*occurring, *lowered]
    isolated = tf.strings.regex_full_match(tf.constant(candidates), ISOLATED_CHARACTER).numpy().tolist()
    tokens: list[str] = []
    for index, (character, alone) in enumerate(zip(candidates, isolated, strict=True)):
        forms = [character] if alone else [character, _CONTINUATION + character]
        if len(tokens) + len(forms) > (room if index < len(occurring) else room // 2):
            break
        tokens += forms
    if not tokens:
        raise TextError("the vocabulary is too small for a single character", expected="a larger size", found=room)
    return sorted(tokens, key=lambda token: (len(token) > 1, token))


def _learn(counts: dict[str, int], characters: set[str], wanted: int, min_frequency: int) -> list[str]:
    """Learns pieces from the words that the alphabet can write: `wanted` or more where there are so many.

    Searches the highest threshold of frequency that gives enough. The learner's own search overshoots its lower bound
    and stops at too few pieces when one step of the threshold changes many.
    """
    load_tensorflow_text()
    from tensorflow_text.tools.wordpiece_vocab import wordpiece_tokenizer_learner_lib as learner

    words = [(word, n) for word, n in counts.items() if characters.issuperset(word) and len(word) <= _MAX_PIECE]
    settings = learner.Params(
        upper_thresh=None,
        lower_thresh=None,
        num_iterations=4,
        max_input_tokens=-1,
        max_token_length=_MAX_PIECE,
        max_unique_chars=len(characters),
        vocab_size=wanted,
        slack_ratio=0.0,
        include_joiner_token=True,
        joiner=_CONTINUATION,
        reserved_tokens=[],
    )

    def learn(threshold: int) -> list[str]:
        pieces: list[str] = learner.learn_with_thresh(words, threshold, settings)
        # One character is the alphabet's matter, and punctuation and ideographs continue no word.
        return [piece for piece in pieces if len(piece.removeprefix(_CONTINUATION)) > 1]

    enough, threshold = learn(min_frequency), min_frequency
    # First by doubling: most vocabularies take nearly all words, and each step down there is the slow one.
    step = min_frequency
    while len(enough) > wanted and step:
        pieces = learn(threshold + step)
        if len(pieces) >= wanted:
            enough, threshold, step = pieces, threshold + step, step * 2
        else:
            break
    while (step := step // 2) and len(enough) > wanted:
        if len(pieces := learn(threshold + step)) >= wanted:
            enough, threshold = pieces, threshold + step
    return enough


def check_vocabulary(vocabulary: Sequence[str], where: str | Path | None = None) -> list[str]:
    """Checks that a list of tokens can be a vocabulary.

    Args:
        vocabulary: The tokens.
        where: What to name in the message, such as the file. Default None.

    Returns:
        The tokens as a list.

    Raises:
        TextError: It is empty, a token is empty, twice there or has a line break, or a special token is missing.
    """
    tokens = [str(token) for token in vocabulary]
    if isinstance(vocabulary, str) or not tokens:
        found = "one string" if tokens else "an empty one"
        raise TextError("no vocabulary", where=where, expected="a list of tokens", found=found)
    first: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if not token or "\n" in token or "\r" in token:
            raise TextError(
                "a token of the vocabulary is empty or has a line break", where=where, found=f"{token!r} as id {index}"
            )
        if token in first:
            raise TextError(
                "a token is twice in the vocabulary", where=where, found=f"{token!r} as ids {first[token]} and {index}"
            )
        first[token] = index
    if missing := [token for token in _REQUIRED if token not in first]:
        raise TextError(
            "the vocabulary lacks special tokens",
            where=where,
            expected=" ".join(_REQUIRED),
            found=f"no {' '.join(missing)} among {len(tokens)} tokens",
        )
    return tokens


def read_vocabulary(path: str | Path) -> list[str]:
    """Reads a vocabulary file: UTF-8, one token a line, the first line is id 0.

    Raises:
        TextError: The file is missing, is not UTF-8, or is no vocabulary.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise TextError("the vocabulary cannot be read", where=path, found=error.strerror) from error
    except UnicodeDecodeError as error:
        raise TextError("the vocabulary is not text", where=path, expected="UTF-8", found=error.reason) from error
    # Not splitlines: a token may be a character that Python takes for a line break, such as U+2028.
    lines = text.removesuffix("\n").split("\n") if text else []
    return check_vocabulary([line.removesuffix("\r") for line in lines], where=path)


def write_vocabulary(vocabulary: Sequence[str], path: str | Path) -> None:
    """Writes a vocabulary file with one token a line; the file is whole or is not there.

    Raises:
        TextError: It is no vocabulary, or the file cannot be written.
    """
    tokens = check_vocabulary(vocabulary)
    partial = Path(f"{path}.partial")
    try:
        partial.write_bytes("".join(f"{token}\n" for token in tokens).encode("utf-8"))
        os.replace(partial, path)
    except OSError as error:
        raise TextError("the vocabulary cannot be written", where=path, found=error.strerror) from error
