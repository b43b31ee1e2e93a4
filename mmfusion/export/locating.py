"""Where in a picture a phrase is, as a run or an export can say it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from mmfusion.errors import ExportError
from mmfusion.explain import Localisation, localise, phrase_heat, phrase_places

if TYPE_CHECKING:
    from mmfusion.export.predictor import Predictor
    from mmfusion.training import LoadedRun


def locate_in_run(run: LoadedRun, content: bytes, phrase: str, *, method: str, sentence: str | None) -> Localisation:
    """Asks a run's whole model, by any method of `mmfusion.explain.localise`.

    Args:
        run: The run.
        content: The picture's bytes.
        phrase: What to look for.
        method: See `mmfusion.explain.localise`.
        sentence: A sentence that holds the phrase, read instead of it; None reads the phrase.

    Returns:
        The `Localisation` of this picture.
    """
    pixels: Any = run.transform(tf.constant(content))
    sentences = None if sentence is None else [sentence]
    found = localise(run.model, run.tokenizer, pixels[None], [phrase], method=method, sentences=sentences)
    return Localisation(found.heat[0], float(found.score[0]))


def locate_by_signatures(predictor: Predictor, image: Any, phrase: str, *, method: str, sentence: str | None) -> Localisation:
    """Asks an export's signatures: by attention alone, as ``attend`` says it.

    Args:
        predictor: The predictor.
        image: The picture.
        phrase: What to look for.
        method: ``"attention"``.
        sentence: A sentence that holds the phrase, read instead of it; None reads the phrase.

    Returns:
        The `Localisation` of this picture.

    Raises:
        ExportError: If another method is asked for.
    """
    if method != "attention":
        raise ExportError(
            "an export knows attention alone", where=predictor.name, expected="method attention", found=method, fix="ask the run"
        )
    read = phrase if sentence is None else sentence
    looks = predictor.attend(image, read)
    wanted = looks.tokens if sentence is None else predictor.attend(image, phrase).tokens
    heat = phrase_heat(looks.maps, phrase_places(looks.tokens, wanted), np.isin(looks.tokens, ["[CLS]", "[SEP]"]))
    if "match" in predictor.functions:
        return Localisation(heat, float(predictor.match([image], [read])[0]))
    if "encode_text" in predictor.functions:
        cosine = float(np.sum(predictor.encode_image([image]) * predictor.encode_text([read])))
        return Localisation(heat, (1.0 + cosine) / 2.0)
    return Localisation(heat, float("nan"))
