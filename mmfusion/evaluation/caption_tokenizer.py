"""Splits captions into words the way caption scores expect: Penn Treebank conventions, lower case, no punctuation.

The published captioning scores are computed on the output of Stanford's ``PTBTokenizer`` (CoreNLP 3.4.1,
``-lowerCase``), with a fixed list of punctuation marks removed. That tokenizer is a Java program; this is what it does
to captions, as a lexer: regular expressions of which the longest match wins, and the earlier one where two are equally
long.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mmfusion.errors import DataError

# The list that pycocoevalcap removes. It compares after lower-casing, so that "-lrb-" survives there; so it does here.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

_NORMAL_FORMS = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "‘": "`", "‛": "`", "‹": "`", "›": "'", "“": "``", "«": "``", "”": "''", "»": "''", '"': "''",
    "–": "--", "—": "--", "―": "--", "…": "...", "€": "$", "¤": "$", "₠": "$", "£": "#", "¢": "cents",
    "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "\u2010": "", "\u2011": "",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''",
}  # fmt: skip

# Combining marks that are part of words, but not for Python.
_MARKS = (
    "\u02c2-\u02c5\u02d2-\u02df\u02e5-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0615-\u061a"
    "\u064b-\u065f\u0670\u06d6-\u06dc\u06de-\u06ed\u0711\u0730-\u074a\u07a6-\u07b0\u07eb-\u07f3\u0900-\u0903\u093a-\u094f"
    "\u0951-\u0957\u0962\u0963\u0981-\u0983\u09bc-\u09cd\u0a01-\u0a4d\u0a81-\u0acd\u0b01-\u0bcd\u0c00-\u0c56\u0c81-\u0cd6"
    "\u0d00-\u0d4d\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd"
)
# Numerals such as ½ and ②: part of words for Python, but tokens of their own here.
_NUMERALS = "²³¹¼-¾\u2070-\u2089\u2150-\u218b\u2460-\u24ff\u2776-\u2793"
# Emoji, control, format and private characters part words and leave no token.
_UNKNOWN = re.compile(
    "[\U00010000-\U0010ffff\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u20dd-\u20e4\ud800-\uf8ff\ufe00-\ufe0f"
    "\ufeff\ufff9-\uffff]"
)

_LETTER = rf"(?:(?![\d_{_NUMERALS}])[\w{_MARKS}])"
_SIGN = rf"(?:(?![_{_NUMERALS}])[\w{_MARKS}])"  # a letter or a digit
_THING = rf"(?:[dDoOlL]')?{_SIGN}+(?:[-_\u058a\u2010\u2011](?:[dDoOlL]')?{_SIGN}+)*"
_WORD = rf"{_LETTER}{_SIGN}*(?:[.!?]{_LETTER}{_SIGN}*)*"
_HYPHENED = r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9]+))+"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])*"
_NUMBER = r"(?:\d*(?:[.:,]\d+)+|\d+)"
_ADDRESS = (
    r"(?:www\.(?:[^\s\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}|(?:[^\s\"`'<>|.!?(){},$_-]+\.)+(?:com|net|org|edu))"
    r"(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?"
)
_AUXILIARY = r"'(?:[msdMSD]|[rR][eE]|[vV][eE]|[lL][lL])(?![A-Za-z])"
_ABBREVIATION = (
    "mr|mrs|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|mt|capt|ste?|ave|pres|lieut|hon"
    "|brig|co?mdr|pfc|spc|supts?|det|mlle|mme|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs|fri|ala|ariz"
    "|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo|inc|cos?|corp"
    "|ltd|plc|rt|bancorp|dept|bhd|assn|univ|intl|sys|jr|sr|bros|(?:ed|ph)\\.d|esq|vs|etc|al|alex|wm|jos|cie|a\\.k\\.a|cf|blvd|rd"
    "|ft|sq(?=\\.\\s+[A-Z])"
)
_STATE = "Ark|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"  # words of their own without the capital
_APOSTROPHED = (
    "'n|[ldj]'|ol'|somethin'|dunkin'|'em|'cause|'till?|c'mon|more'n|ma'ams?|you'all|o'clock|li'l|d'ye|ne'er|e'er|o'er|s'mores"
)

# Each pattern's first group is the token; what it matches beyond counts for the length, as trailing context does in a
# lexer.
_RULES = [
    re.compile(pattern)
    for pattern in (
        r"((?i:cannot))(?!\w)",  # and the others that part in two; see _PARTED
        r"((?i:gonna|gotta|wanna|gimme|lemme))(?!\w)",
        r"((?i:'tis|'twas))(?!\w)",
        r"([A-Za-z]+?)[nN]'[tT][A-Za-z]*",
        r"([nN]'[tT][A-Za-z]*)",
        rf"((?:{_WORD}|{_THING}|{_HYPHENED}|{_SLASHED}|(?:[A-Za-z]\.)+)){_AUXILIARY}",
        rf"({_AUXILIARY})",
        r"(https?://[^\s\"<>|()]+[^\s\"<>|.!?(){},-])",
        rf"({_ADDRESS})",
        r"([a-zA-Z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|().{}]+\.)*[^\s\"<>|().{}]+)",
        rf"([@#](?:{_LETTER}|_)+)",
        r"(</?[A-Za-z!?][^<>\s]*/?>)",
        rf"({_WORD})",
        rf"({_THING})",
        rf"({_SLASHED})",
        rf"({_HYPHENED})",
        r"([A-Z]+(?:[+&][A-Z]+)+)",
        rf"([-+]?(?:{_NUMBER}|\({_NUMBER}\)))",
        r"((?:\d{1,4}-)?\d{1,4}/\d{1,4})",
        r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})",
        r"([A-Z]*\$)",
        r"([A-Z]#|[Cc]\+\+)",
        r"([<>]?[:;=]['o-]?[()DPdpO@|\[\]{}\\])(?![A-Za-z0-9])",
        rf"((?:{_STATE}|(?i:{_ABBREVIATION}))\.)",
        r"((?i:ca|figs?|prop|nos?|arts?|bldg|pp|op|ph)\.)\s?\d",
        rf"({_ACRONYM}\.)\s",
        rf"({_ACRONYM}\.)(?<=\..\.)",
        r"('[nN]')",
        rf"((?i:{_APOSTROPHED}))(?!{_SIGN})",
        r"([ldjyLDJY]')(?=[A-Za-z])",
        r"('\d\ds|'\d\d(?=\s|$))",
        r"(\.{3,5}|(?:\. ){2,4}\.)",
        r"(-{2,}|[?!]+|``|''|\*+|&(?:amp|lt|gt|quot);)",
        r"(\S)",
    )
]
_BRACKET = re.compile(r"[()\[\]{}]")
_PLAIN = re.compile(r"(?:[A-Za-z]+|[.,])(?=\s|$)")
_PARTED = {
    "cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "gimme": 3, "lemme": 3, "more'n": 4, "'tis": 2, "'twas": 2,
}  # fmt: skip


def tokenize_caption(caption: str) -> list[str]:
    """Splits one caption into lower-case words, without punctuation.

    Args:
        caption: Any text; a line break is a space.

    Returns:
        The words. Contractions are parted (``do``, ``n't``), hyphenated words are not; emoji leave nothing; an empty
        caption gives an empty list.

    Example:
        >>> tokenize_caption("A man's dog doesn't like the T-shirt, at 10:30.")
        ['a', 'man', "'s", 'dog', 'does', "n't", 'like', 'the', 't-shirt', 'at', '10:30']
    """
    return [token for token in _lex(caption) if token not in PUNCTUATION]


def tokenize_captions(captions: Iterable[str]) -> list[list[str]]:
    """Splits captions into words as `tokenize_caption` does.

    Args:
        captions: Texts.

    Returns:
        A list of words for each caption, in order.

    Raises:
        DataError: If `captions` is one string, or one of them is no string.

    Example:
        >>> tokenize_captions(["Two dogs run.", ""])
        [['two', 'dogs', 'run'], []]
    """
    if isinstance(captions, str):
        raise DataError("captions are a list of texts", expected="list[str]", found=repr(captions), fix="put it into a list")
    tokens = []
    for row, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise DataError("a caption that is no text", where=f"row {row}", expected="str", found=repr(caption))
        tokens.append(tokenize_caption(caption))
    return tokens


def _lex(caption: str) -> list[str]:
    text = _UNKNOWN.sub(" ", caption.replace("\u00ad", "").replace("’", "'"))
    tokens: list[str] = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        token = _plain_token(text, position) or _longest_token(text, position)
        position += len(token)
        low = token.lower()
        if low in _PARTED:
            tokens += [low[: _PARTED[low]], low[_PARTED[low] :]]
        else:
            tokens += _normalized(low).split()
    return tokens


def _plain_token(text: str, position: int) -> str:
    match = _PLAIN.match(text, position)
    return match.group() if match else ""


def _longest_token(text: str, position: int) -> str:
    token, longest = text[position], 0
    for rule in _RULES:
        match = rule.match(text, position)
        if match and match.end() - position > longest:
            token, longest = match.group(1), match.end() - position
    return token


def _normalized(token: str) -> str:
    if token in _NORMAL_FORMS:
        return _NORMAL_FORMS[token]
    if len(token) > 1 and not token.strip(".-*"):
        return {".": "...", "-": "--"}.get(token[0], token)
    return _BRACKET.sub(lambda bracket: _NORMAL_FORMS[bracket.group()], token)
