"""BERT's normalisation of text and its reverse for people, as TensorFlow graph operations."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from mmfusion.errors import TextError

if TYPE_CHECKING:
    import tensorflow as tf

# Each class is what BERT's cleaning step asks of a character, in RE2's syntax.
_WHITESPACE = r"[\t\n\r\p{Z}]+"
_REMOVED = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F-\x{9F}\p{Cf}\p{Co}\x{FFFD}]"
# The eight blocks of ideographs that BERT sets apart, because Chinese puts no spaces between words.
_IDEOGRAPH = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}"
    r"\x{2B740}-\x{2B81F}\x{2B820}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
)
_PUNCTUATION = r"!-/:-@\[-`{-~\p{P}"
ISOLATED_CHARACTER = rf"[{_PUNCTUATION}{_IDEOGRAPH}]"
# Scripts that are written without spaces: ideographs, kana, and the punctuation that goes with them.
_UNSPACED = rf"[{_IDEOGRAPH}\x{{3040}}-\x{{30FF}}\x{{3000}}-\x{{303F}}\x{{FF01}}-\x{{FF0F}}\x{{FF1A}}-\x{{FF20}}]"
_APOSTROPHE = r"['\x{2019}]"
# As in BERT: a longer word is not worth splitting.
_MAX_WORD_CHARACTERS = 100

UNKNOWN = "[UNK]"


def load_tensorflow_text() -> ModuleType:
    """Imports tensorflow_text when it is first needed, since it is large and does not exist for every system.

    Raises:
        TextError: It is not there, or was built for another TensorFlow.
    """
    import tensorflow as tf

    try:
        module = importlib.import_module("tensorflow_text")
    except (ImportError, tf.errors.NotFoundError) as error:
        raise TextError(
            "tensorflow_text cannot be imported",
            expected=f"the same minor version as TensorFlow {tf.__version__}",
            found=error,
            fix="install tensorflow-text",
        ) from error
    return module


def normalize(text: tf.Tensor, *, lowercase: bool = True) -> tf.Tensor:
    r"""Cleans text as BERT does: valid UTF-8, no control characters, one kind of space, perhaps no case and accents.

    With ``lowercase``, accents go too: ``strip(x) = lower(NFD(x) without nonspacing marks)``.

    Args:
        text: ``string[...]`` in UTF-8; bytes that are not UTF-8 are dropped.
        lowercase: Whether to drop case and accents. Default True.

    Returns:
        ``string[...]``.

    Example:
        >>> from mmfusion.text import normalize
        >>> normalize("Un  CAFÉ à Tōkyō\t…").numpy().decode()
        'un cafe a tokyo …'

    Source: Devlin et al. 2018 (arXiv:1810.04805), `BasicTokenizer` of the published code.
    """
    import tensorflow as tf

    # ICU's replacement character stands for whatever is not UTF-8; the cleaning below drops it as BERT does.
    text = tf.strings.unicode_transcode(text, input_encoding="UTF-8", output_encoding="UTF-8", errors="replace")
    text = tf.strings.regex_replace(text, _REMOVED, "")
    text = tf.strings.regex_replace(text, _WHITESPACE, " ")
    if lowercase:
        # NFD and not tensorflow_text's case folding, which would also turn … into ... and ß into ss.
        text = load_tensorflow_text().normalize_utf8(text, "NFD")
        text = tf.strings.regex_replace(text, r"\p{Mn}", "")
        # ICU lowers I and Σ by locale (Turkish) and by position (final sigma); BERT does neither.
        text = tf.strings.regex_replace(text, "I", "i")
        text = tf.strings.regex_replace(text, "\u03a3", "\u03c3")
        text = tf.strings.lower(text, encoding="utf-8")
    return tf.strings.strip(text)


def split_words(normalized: tf.Tensor) -> tf.RaggedTensor:
    """Splits normalised text into words; each punctuation mark and each ideograph is a word of its own.

    Args:
        normalized: ``string[B]``, what `normalize` returned.

    Returns:
        Ragged ``string[B, (W)]``; a word of more than 100 characters becomes ``[UNK]``.

    Example:
        >>> from mmfusion.text import normalize, split_words
        >>> words = split_words(normalize(["A dog's 2 balls.", "一只狗"]))
        >>> [[word.decode() for word in row] for row in words.to_list()]
        [['a', 'dog', "'", 's', '2', 'balls', '.'], ['一', '只', '狗']]

    Source: Devlin et al. 2018 (arXiv:1810.04805), `BasicTokenizer` of the published code.
    """
    import tensorflow as tf

    words = tf.strings.split(tf.strings.regex_replace(normalized, ISOLATED_CHARACTER, r" \0 "))
    too_long = rf"^(?s:.{{{_MAX_WORD_CHARACTERS + 1},}})$"
    # A text cannot write this word itself, since its brackets would have been split off.
    return words.with_flat_values(tf.strings.regex_replace(words.flat_values, too_long, UNKNOWN))


def tidy(text: tf.Tensor) -> tf.Tensor:
    r"""Undoes the spacing of split words, so that a person would have written the text like this.

    No space before ``. , ! ? ; : % )`` and after ``(``, none around ``-`` and ``/``, around the apostrophe of a word,
    inside a pair of quotes, nor between characters of scripts that are written without spaces. What splitting loses for
    good stays lost, such as a space between two Chinese words or that of a suspended hyphen, ``left- and right``.

    Args:
        text: ``string[...]``, words joined by one space.

    Returns:
        ``string[...]``.

    Example:
        >>> from mmfusion.text import tidy
        >>> tidy("a man ' s t - shirt , says \" hello \" .").numpy().decode()
        'a man\'s t-shirt, says "hello".'
    """
    import tensorflow as tf

    for pattern, replacement in (
        (r" ([.,!?;:%)\]}»”…。、،؛؟])", r"\1"),
        (r"([(\[{«“¿¡]) ", r"\1"),
        (r'" ([^"]*) "', r'"\1"'),
        (r" ([\-/]) ", r"\1"),
        # A straight apostrophe joins what English and French write as one word; elsewhere it may be a quotation mark.
        (rf"(\S) ({_APOSTROPHE}) (s|t|m|d|re|ve|ll)\b", r"\1\2\3"),
        (rf"(^| )([b-hj-zB-HJ-Z]|[Qq]u) ({_APOSTROPHE}) ", r"\1\2\3"),
        (rf"([^ '\x{{2019}}]s) ({_APOSTROPHE})( |$)", r"\1\2\3"),
        (r" \x{2019} ", "\u2019"),
        (r"(\d[.:]) (\d)", r"\1\2"),
        # Twice, since RE2 cannot look ahead and the first pass eats the neighbour of every other character.
        (r"\b(\pL\.) (\pL\.)", r"\1\2"),
        (r"\b(\pL\.) (\pL\.)", r"\1\2"),
        (rf"({_UNSPACED}) ({_UNSPACED})", r"\1\2"),
        (rf"({_UNSPACED}) ({_UNSPACED})", r"\1\2"),
    ):
        text = tf.strings.regex_replace(text, pattern, replacement)
    return tf.strings.strip(text)
