"""Captions of a run as a person asks for them."""

from __future__ import annotations

import numpy as np
import pytest
from untrained import WORDS, untrained_run

from mmfusion.errors import ConfigError, DataError, ExportError
from mmfusion.export import example_image, export_model, load
from mmfusion.training import load_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("captions") / "run", "captioning", fusion={"depth": 1, "num_heads": 2})


@pytest.fixture(scope="module")
def predictor(folder):
    return load(folder)


PICTURES = [example_image(size) for size in (64, 96, 40)]


def test_several_captions_of_each_picture(predictor):
    found = predictor.captions(PICTURES, method="sample", num_samples=4, seeds=3, temperature=2.0)
    assert [len(captions) for captions in found] == [4, 4, 4]
    for captions in found:
        scores = [caption.score for caption in captions]
        assert scores == sorted(scores, reverse=True) and max(scores) <= 0
    assert len({caption.text for captions in found for caption in captions}) > 4
    assert found == predictor.captions(PICTURES, method="sample", num_samples=4, seeds=3, temperature=2.0)


def test_seeds_are_the_pictures_own_whatever_the_batches(folder):
    whole, parts = load(folder, batch_size=8), load(folder, batch_size=2)

    def texts(predictor, pictures, seeds):
        found = predictor.captions(pictures, method="sample", temperature=2.0, seeds=seeds)
        return [caption.text for captions in found for caption in captions]

    expected = texts(whole, PICTURES, [5, 6, 7])
    assert texts(whole, PICTURES, 5) == texts(parts, PICTURES, 5) == texts(parts, PICTURES, [5, 6, 7]) == expected
    # One number is no reason to draw for the third picture what the first got.
    assert len(set(texts(parts, PICTURES[:1] * 6, 0))) > 2
    with pytest.raises(ExportError, match=r"seeds\]: expected int32\[3\], found \[1, 2\]"):
        texts(parts, PICTURES, [1, 2])


def test_beams_without_a_number_are_told(folder):
    model = load_run(folder).model
    with pytest.raises(ConfigError, match=r"beam decoding needs an option that is not there \[caption\]: expected beam_size"):
        model.caption(np.zeros((1, *model.image_encoder.image_size, 3), "float32"), method="beam")


def test_without_options_it_is_what_the_recipe_says(predictor):
    recipe = load_run(predictor.name).recipe.decoding
    found = predictor.captions(PICTURES, **recipe.options())
    for captions, caption in zip(found, predictor.caption(PICTURES), strict=True):
        assert captions[0].text == caption.text
        np.testing.assert_allclose(captions[0].score, caption.score, rtol=1e-5)


def test_options_lie_over_what_the_recipe_says(folder, predictor):
    recipe = load_run(folder).recipe.decoding
    assert recipe.method == "beam" and recipe.beam_size == 2
    shorter = predictor.captions(PICTURES, max_tokens=3)
    assert shorter == predictor.captions(PICTURES, method="beam", beam_size=2, max_tokens=3)
    assert [len(captions) for captions in shorter] == [2, 2, 2]
    assert predictor.captions(PICTURES, beam_size=3) == predictor.captions(PICTURES, method="beam", beam_size=3)
    assert {len(captions) for captions in predictor.captions(PICTURES, method="greedy")} == {1}


def test_words_to_begin_with_to_have_and_to_avoid(predictor):
    for captions in predictor.captions(PICTURES, prefix="the dog"):
        assert captions[0].text.startswith("the dog")
    for captions in predictor.captions(PICTURES, method="beam", beam_size=2, required=["red heart", "cat"]):
        assert captions and all("red heart" in caption.text and "cat" in caption.text for caption in captions)
    plain = " ".join(captions[0].text for captions in predictor.captions(PICTURES, min_tokens=5)).split()
    words = sorted(set(plain) & set(WORDS))
    assert words
    for captions in predictor.captions(PICTURES, min_tokens=5, forbidden=words):
        assert not set(captions[0].text.split()) & set(words)


def test_a_stream_ends_as_greedy_does(predictor):
    for picture, captions in zip(PICTURES, predictor.captions(PICTURES, method="greedy", min_tokens=3), strict=True):
        texts = list(predictor.stream_caption(picture, min_tokens=3))
        assert len(texts) >= 3 and texts[-1] == captions[0].text


def test_says_what_is_wrong(predictor, folder, tmp_path):
    with pytest.raises(DataError, match=r"no words of the vocabulary \[required\].*'zebra'"):
        predictor.captions(PICTURES, method="beam", required=["zebra"])
    with pytest.raises(DataError, match=r"several tokens.*found dog ##s"):
        predictor.captions(PICTURES, forbidden=["dogs"])
    with pytest.raises(DataError, match=r"list is needed \[forbidden\]"):
        predictor.captions(PICTURES, forbidden="man")
    with pytest.raises(ConfigError, match="greedy decoding does not have.*found temperature"):
        predictor.captions(PICTURES, method="greedy", temperature=0.5)
    with pytest.raises(ConfigError, match="unknown method of decoding.*'nucleus'"):
        predictor.captions(PICTURES, method="nucleus")
    with pytest.raises(DataError, match="not a readable image"):
        predictor.captions([PICTURES[0], b"no picture"])
    export = load(export_model(load_run(folder), tmp_path / "export"))
    with pytest.raises(ExportError, match="this export does not give captions with options.*--with-options.*ask the run"):
        export.captions(PICTURES, method="greedy")
    with pytest.raises(ExportError, match="ask the run"):
        export.stream_caption(PICTURES[0])
