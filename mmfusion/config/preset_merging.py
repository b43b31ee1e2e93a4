"""How a preset and what a recipe says of its own come together."""

from __future__ import annotations

from typing import Any

from mmfusion.config.figures import figures_of
from mmfusion.config.fusion_config import FUSION_STYLES, STYLE_OPTIONS
from mmfusion.config.overrides import merge
from mmfusion.config.presets import PRESETS, Content
from mmfusion.config.train_config import TERMS
from mmfusion.errors import ConfigError

_COMPOSITION = {
    "model": (
        "heads",
        "image_pooling",
        "text_pooling",
        "pooling_mlp_ratio",
        "causal_text",
        "contrastive_tokens",
        "matching_tokens",
        "image_queries",
    ),
    "fusion": ("style", *(option for options in STYLE_OPTIONS.values() for option in options)),
}
#: The encoders, and how deep one is where nobody says.
_DEPTHS = {"image_encoder": 6, "text_encoder": 4}


def beneath(content: Content) -> Content:
    """A recipe's content with what its ``preset`` says and it does not say itself: what ``preset: NAME`` in a file does.

    Whatever the recipe sets counts. Where it does not say by what figure to choose and the model has no retrieval, that is
    ``val_loss``.

    Args:
        content: The recipe as nested dictionaries; it is not changed.

    Returns:
        The content; the same where it names no preset, or one that does not exist.

    Example:
        >>> beneath({"preset": "clip", "objective": {"contrastive": {"label_smoothing": 0.1}}})["objective"]["contrastive"]
        {'loss': 'softmax', 'label_smoothing': 0.1}
    """
    name = content.get("preset")
    if not isinstance(name, str) or name not in PRESETS:
        return content
    whole = merge(PRESETS[name], content)
    return whole if "val_rsum" in _figures(whole) else merge({"train": {"monitor": "val_loss"}}, whole)


def replaced(content: Content, name: Any) -> Content:
    """A recipe's content with another composition: what ``preset=NAME`` on the command line does to a file.

    - Heads, poolings, style with its own options and the whole of ``objective`` become the preset's.
    - Sizes, data, text, training and decoding stay. Layers that the preset takes from an encoder (depth 0) go to the fusion, as
      many as the deeper of these encoders had, unless it is recurrent; a depth of the preset's own is the least that it makes
      sense with.
    - What the new model cannot do is not asked of it: no reranking without a contrastive and a matching head; a figure to choose
      or to search by that it does not say becomes ``val_loss``; ranges of options that are now the preset's are dropped.

    Args:
        content: The recipe as nested dictionaries, its quick variant included; it is not changed.
        name: The preset; null leaves the composition as it is and drops the name.

    Returns:
        The new content.
    """
    if not isinstance(name, str) or name not in PRESETS:
        return {**content, "preset": name}
    preset, kept = PRESETS[name], _without_composition(merge({}, content))
    lost = [encoder for encoder in _DEPTHS if preset["model"].get(encoder, {}).get("depth") == 0]
    model, fusion = _section(kept, "model"), _section(kept, "fusion")
    moved = max((_section(model, encoder).get("depth", _DEPTHS[encoder]) for encoder in lost), default=0)
    if preset.get("fusion", {}).get("style") == "recurrent":
        moved = 0  # an LSTM reads the embedding by itself: no layer is missing
    depth = max(fusion.get("depth", 2) + moved, preset.get("fusion", {}).get("depth", 1))
    changed = merge(merge(kept, preset), {"preset": name, "fusion": {"depth": depth}})
    figures = _figures(changed)
    quick = _without_composition(merge({}, _section(changed, "quick")))
    for encoder in lost:
        _section(_section(quick, "model"), encoder).pop("depth", None)
    if quick:
        changed["quick"] = _possible(quick, figures, whole=False)
    return _possible(changed, figures)


def check_words(name: Any, said: Content, where: str) -> None:
    """Refuses what a person says beside a preset where it would be lost, or would leave a model that nobody means.

    That is a fusion style, or an option of one, beside a preset whose heads read none; and another style than the preset's where
    this one does the work of an encoder, unless the person says how deep the encoder is then.

    Args:
        name: The preset; one that does not exist, like a style that does not, is refused elsewhere.
        said: What is said beside it, as nested dictionaries.
        where: What to call it in errors.

    Raises:
        ConfigError: With what to say instead.

    Example:
        >>> check_words("vilt", {"fusion": {"style": "cross"}}, "recipe")
        Traceback (most recent call last):
        mmfusion.errors.ConfigError: preset vilt leaves image_encoder and text_encoder without layers for its style to do their \
work [recipe: fusion.style]: expected merged, found cross; say model.image_encoder.depth and model.text_encoder.depth too
    """
    if not isinstance(name, str) or name not in PRESETS:
        return
    preset, model, fusion = PRESETS[name], _section(said, "model"), _section(said, "fusion")
    if "fusion" not in preset and not {"heads", "contrastive_tokens"} & model.keys():
        for option in (option for option in _COMPOSITION["fusion"] if fusion.get(option) is not None):
            raise ConfigError(
                f"no head of preset {name} reads a fusion", where=f"{where}: fusion.{option}", expected="nothing said of it",
                found=fusion[option], fix="leave it out, or choose another preset",
            )  # fmt: skip
    emptied = [encoder for encoder in _DEPTHS if _section(preset["model"], encoder).get("depth") == 0]
    unsaid = [encoder for encoder in emptied if "depth" not in _section(model, encoder)]
    style, found = _section(preset, "fusion").get("style"), fusion.get("style")
    if unsaid and found in FUSION_STYLES and found != style:
        raise ConfigError(
            f"preset {name} leaves {' and '.join(unsaid)} without layers for its style to do their work",
            where=f"{where}: fusion.style", expected=style, found=found,
            fix=f"say {' and '.join(f'model.{encoder}.depth' for encoder in unsaid)} too",
        )  # fmt: skip


def _without_composition(content: Content) -> Content:
    """The content, which is changed, without what a preset decides. An encoder's depth of 0 is no size to keep."""
    for name, options in _COMPOSITION.items():
        for option in options:
            _section(content, name).pop(option, None)
    content.pop("objective", None)
    for encoder in _DEPTHS:
        section = _section(_section(content, "model"), encoder)
        if section.get("depth") == 0:
            del section["depth"]
    return content


def _possible(content: Content, figures: tuple[str, ...], whole: bool = True) -> Content:
    """The content, which is changed, asking nothing of a model that it cannot do; `whole` minds what it does not say, too."""
    evaluation, train, tune = (_section(content, name) for name in ("evaluation", "train", "tune"))
    unsaid = "val_rsum" if whole else "val_loss"
    if evaluation.get("rerank_top_k") and not {"val_rsum", "val_matching_loss"} <= set(figures):
        evaluation["rerank_top_k"] = 0
    if train.get("monitor", unsaid) not in figures:
        content["train"] = {**train, "monitor": "val_loss"}
    if tune and _section(tune, "objective").get("metric", unsaid) not in figures:
        tune["objective"] = {"metric": "val_loss"}
    space = _section(tune, "space")
    for path in [path for path in space if _decided(path, content)]:
        del space[path]
    return content


def _decided(path: str, content: Content) -> bool:
    """Whether an option is the preset's, so that no search may range over it."""
    section, _, option = str(path).partition(".")
    term, _, rest = option.partition(".")
    if section == "objective":
        return not isinstance(_section(content, "objective").get(term), dict)
    emptied = rest == "depth" and _section(_section(content, section), term).get("depth") == 0
    return emptied or term in _COMPOSITION.get(section, ())


def _figures(content: Content) -> tuple[str, ...]:
    heads = _section(content, "model").get("heads", ["contrastive", "matching", "captioning"])
    objective = _section(content, "objective")
    terms = [term for term in TERMS if objective.get(term, None if term == "masked_language" else {}) is not None]
    return figures_of(heads if isinstance(heads, list | tuple) else [], terms)


def _section(content: Content, name: str) -> Content:
    """A section as it stands in the content, or an empty one that does not."""
    section = content.get(name)
    return section if isinstance(section, dict) else {}
