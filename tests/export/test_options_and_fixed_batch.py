"""One export of one batch size whose captions take options: its signatures, its warm-up requests, its operators."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from untrained import untrained_run
from warm_up_checks import replayed

from mmfusion.cli.check_serving import check_serving as command
from mmfusion.errors import ConfigError, ExportError
from mmfusion.export import check_serving, example_image, export_model, load, serving_functions, verify_export
from mmfusion.export.operators import operators_of
from mmfusion.export.warmup import warm_up_request
from mmfusion.serving.signature import signatures_of
from mmfusion.training import load_run

PICTURES = [example_image(size) for size in (64, 96, 40)]
LENGTH = 8
TEXT_OPERATORS = ("NormalizeUTF8", "WordpieceTokenizeWithOffsets")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options") / "run"
    decoding = {"method": "greedy", "num_samples": 3, "beam_size": 2}
    return load_run(untrained_run(folder, "contrastive", "captioning", fusion={"depth": 1, "num_heads": 2}, decoding=decoding))


@pytest.fixture(scope="module")
def export(run, tmp_path_factory) -> Path:
    return export_model(run, tmp_path_factory.mktemp("export") / "pairs", with_options=True, batch_size=2)


@pytest.fixture(scope="module")
def loaded(export):
    return tf.saved_model.load(str(export))


def pixels(run, pictures: list[bytes]) -> tf.Tensor:
    return tf.stack([run.transform(tf.constant(picture)) for picture in pictures])


def texts(run, token_ids: tf.Tensor) -> list[list[bytes]]:
    return [run.tokenizer.detokenize(row).numpy().tolist() for row in token_ids]


def test_shapes_are_known(loaded, run) -> None:
    """Fixed as they were asked for; without a batch size they are free."""
    beam, drawn = loaded.signatures["caption_beam"], loaded.signatures["caption_sample"]
    inputs = {key: (spec.dtype.name, spec.shape.as_list()) for key, spec in drawn.structured_input_signature[1].items()}
    assert inputs == {
        "image_bytes": ("string", [2]), "seed": ("int32", [2]), "temperature": ("float32", []), "top_p": ("float32", []),
        "max_tokens": ("int32", []),
    }  # fmt: skip
    inputs = {key: (spec.dtype.name, spec.shape.as_list()) for key, spec in beam.structured_input_signature[1].items()}
    assert inputs == {
        "image_bytes": ("string", [2]), "length_penalty": ("float32", []), "min_tokens": ("int32", []),
        "max_tokens": ("int32", []),
    }  # fmt: skip
    for signature, width in ((drawn, 3), (beam, 2)):
        outputs = {key: (spec.dtype.name, spec.shape.as_list()) for key, spec in signature.structured_outputs.items()}
        assert outputs == {"caption": ("string", [2, width]), "score": ("float32", [2, width])}
    for name in ("encode_image", "encode_text", "encode_text_ids"):
        assert loaded.signatures[name].structured_outputs["embedding"].shape == [2, 12]
    assert loaded.signatures["caption"].structured_outputs["caption"].shape == [2]
    assert loaded.signatures["attend"].structured_outputs["attention"].shape[0] == 2
    free = serving_functions(run.model, run.tokenizer, run.transform, with_options=run.recipe.decoding)
    assert all(spec.shape[0] is None for function in free.values() for spec in function.inputs if spec.shape.rank)
    assert "caption_beam" not in serving_functions(run.model, run.tokenizer, run.transform)


@pytest.mark.parametrize(("temperature", "top_p", "longest"), [(1.0, 1.0, LENGTH), (2.0, 0.7, 4)])
def test_samples_are_the_models(loaded, run, temperature: float, top_p: float, longest: int) -> None:
    seeds = np.array([5, -7], "int32")
    found = loaded.signatures["caption_sample"](
        image_bytes=tf.constant(PICTURES[:2]), seed=tf.constant(seeds), temperature=tf.constant(temperature),
        top_p=tf.constant(top_p), max_tokens=tf.constant(longest),
    )  # fmt: skip
    expected = run.model.caption(
        pixels(run, PICTURES[:2]), method="sample", seeds=seeds, temperature=temperature, top_p=top_p, num_samples=3,
        max_tokens=longest,
    )  # fmt: skip
    assert found["caption"].numpy().tolist() == texts(run, expected.token_ids)
    np.testing.assert_allclose(found["score"], expected.scores, rtol=1e-4)


@pytest.mark.parametrize(("penalty", "fewest", "longest"), [(1.0, 0, LENGTH), (0.0, 3, 5), (2.0, 1, LENGTH)])
def test_beams_are_the_models(loaded, run, penalty: float, fewest: int, longest: int) -> None:
    found = loaded.signatures["caption_beam"](
        image_bytes=tf.constant(PICTURES[:2]), length_penalty=tf.constant(penalty), min_tokens=tf.constant(fewest),
        max_tokens=tf.constant(longest),
    )  # fmt: skip
    expected = run.model.caption(
        pixels(run, PICTURES[:2]), method="beam", beam_size=2, length_penalty=penalty, min_tokens=fewest, max_tokens=longest
    )
    assert found["caption"].numpy().tolist() == texts(run, expected.token_ids)
    # Sums of log-probabilities first, then their means.
    lengths = expected.lengths.numpy().astype("float64")
    np.testing.assert_allclose(found["score"], expected.scores.numpy() * lengths**penalty / lengths, rtol=1e-4)


@pytest.mark.parametrize(
    ("signature", "wrong", "message"),
    [
        ("caption_sample", {"temperature": 0.0}, "temperature: expected a number above 0"),
        ("caption_sample", {"temperature": float("inf")}, "temperature: expected a number above 0"),
        ("caption_sample", {"top_p": float("nan")}, "top_p: expected above 0, up to 1"),
        ("caption_sample", {"max_tokens": 0}, f"max_tokens: expected 1 to {LENGTH}"),
        ("caption_beam", {"max_tokens": LENGTH + 1}, f"max_tokens: expected 1 to {LENGTH}"),
        ("caption_beam", {"min_tokens": 3, "max_tokens": 2}, "min_tokens: expected 0 to max_tokens"),
        ("caption_beam", {"length_penalty": float("nan")}, "length_penalty: expected a number"),
    ],
)
def test_what_is_out_of_range_is_refused_by_the_graph(loaded, signature: str, wrong: dict, message: str) -> None:
    values = {
        "image_bytes": PICTURES[:2], "seed": [1, 2], "temperature": 1.0, "top_p": 1.0, "max_tokens": LENGTH, "min_tokens": 0,
        "length_penalty": 1.0, **wrong,
    }  # fmt: skip
    asked = loaded.signatures[signature]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        asked(**{key: tf.constant(values[key], spec.dtype) for key, spec in asked.structured_input_signature[1].items()})


def test_any_number_of_examples_through_one_batch_size(export, run) -> None:
    """Filled up and cut by the predictor."""
    predictor, whole = load(export), load(run.folder.path)
    np.testing.assert_allclose(predictor.encode_image(PICTURES), whole.encode_image(PICTURES), atol=1e-5)
    np.testing.assert_allclose(predictor.encode_text(["a dog"]), whole.encode_text(["a dog"]), atol=1e-5)
    assert [caption.text for caption in predictor.caption(PICTURES)] == [caption.text for caption in whole.caption(PICTURES)]
    attention = predictor.attend(PICTURES[0], "a dog")
    np.testing.assert_allclose(attention.maps, whole.attend(PICTURES[0], "a dog").maps, atol=1e-5)
    # Whoever asks it, a service say, sees a free batch.
    for signature in signatures_of(predictor).values():
        assert all(spec.shape[0] is None for spec in (*signature.inputs.values(), *signature.outputs.values()) if spec.shape.rank)


def test_one_interface_over_the_run_and_an_export_with_options(export, run) -> None:
    """Three pictures through a batch of two; what the export was not made for is told."""
    exported, whole = load(export), load(run.folder.path)
    for options, width in (
        ({"method": "sample", "seeds": np.array([3, 9, 4], "int32"), "temperature": 1.5, "top_p": 0.8}, {"num_samples": 3}),
        ({"method": "beam", "length_penalty": 0.0, "min_tokens": 2, "max_tokens": 6}, {"beam_size": 2}),
    ):
        found, expected = exported.captions(PICTURES, **options), whole.captions(PICTURES, **options, **width)
        assert [[caption.text for caption in row] for row in found] == [[caption.text for caption in row] for row in expected]
        assert found == exported.captions(PICTURES, **options, **width)
        np.testing.assert_allclose(found[2][1].score, expected[2][1].score, rtol=1e-4)
    for options, message in (
        ({"method": "sample", "num_samples": 5}, "another number of captions.*expected num_samples=3"),
        (
            {"method": "beam", "prefix": "a dog"},
            "caption_beam does not take that.*expected length_penalty.*found prefix; ask the run",
        ),
        ({"method": "sample", "temperature": "hot"}, "not what an option can be.*temperature.*expected one float32, found 'hot'"),
        ({"method": "sample", "max_tokens": 2.5}, "max_tokens.*expected one int32, found 2.5"),
        ({"method": "sample", "seeds": [1, 2]}, r"seeds.*expected int32\[3\], found \[1, 2\]"),
        ({"method": "greedy"}, "does not write so.*expected method sample or beam, found 'greedy'"),
        ({"method": "sample", "temperature": -1.0}, "refused the input.*temperature: expected a number above 0"),
    ):
        with pytest.raises(ExportError, match=message):
            exported.captions(PICTURES, **options)


@pytest.mark.slow
def test_verification_asks_with_options_too(export, run) -> None:
    """In a fresh process, three pictures through a batch of two, against a free batch."""
    rows = verify_export(export, run)
    assert {row.output for row in rows} >= {"caption_sample/caption", "caption_sample/score", "caption_beam/score"}
    assert all(row.passed for row in rows), rows


def test_warm_up_requests_are_answered(export, loaded) -> None:
    # Those with numbers for a whole request are refused by a Serving that joins requests, which then would not load the model.
    assert replayed(export, loaded.signatures) == ["attend", "caption", "encode_image", "encode_text", "encode_text_ids"]


def field(number: int, content: bytes) -> bytes:
    """A field with a length, as protobuf writes it."""
    assert len(content) < 128 and number < 16
    return bytes([number << 3 | 2, len(content)]) + content


def test_a_warm_up_request_is_protobufs_own_bytes() -> None:
    """By hand, from the numbers in prediction_log.proto, predict.proto, model.proto and tensor.proto."""
    shape = field(2, field(2, bytes([1 << 3, 1])))
    picture = bytes([1 << 3, 7]) + shape + field(8, b"JPEG")
    longest = bytes([1 << 3, 3]) + field(2, b"") + field(7, bytes([9]))
    entries = field(2, field(1, b"image_bytes") + field(2, picture)) + field(2, field(1, b"max_tokens") + field(2, longest))
    expected = field(6, field(1, field(1, field(1, b"mine") + field(3, b"caption")) + entries))
    inputs = {"max_tokens": np.array(9, "int32"), "image_bytes": np.array([b"JPEG"], object)}
    assert warm_up_request("mine", "caption", inputs) == expected


def test_operators_against_named_releases(export, capsys) -> None:
    described = json.loads((export / "mmfusion.json").read_text())
    assert tuple(described["operators"]) == operators_of(export) == TEXT_OPERATORS
    assert "| 2.12 to 2.18 | NormalizeUTF8, WordpieceTokenizeWithOffsets | - | - |" in (export / "README.md").read_text()
    first, usual, newest = (check_serving(export, release) for release in ("2.0.0", "2.14", tf.__version__))
    assert (first.held, first.lacking) == (TEXT_OPERATORS[1:], TEXT_OPERATORS[:1])
    assert (usual.held, usual.lacking, usual.older) == (TEXT_OPERATORS, (), True) and "wheel of 2.12.1" in usual.source
    assert not newest.older
    assert check_serving(export, "2.5").unknown == TEXT_OPERATORS and check_serving(export, "2.5").source is None
    with pytest.raises(ConfigError, match="no release of TensorFlow Serving.*found 'latest'"):
        check_serving(export, "latest")
    command(export, ["2.14.1"])
    said = capsys.readouterr().out
    assert "2.14.1: has: NormalizeUTF8, Word" in said and f"older than the export's TensorFlow {tf.__version__}" in said
    with pytest.raises(ExportError, match=r"cannot be served.*found 2\.0 lacks NormalizeUTF8; choose another release"):
        command(export, ["2.14", "2.0"])


def test_a_graph_of_tensorflows_own_operators_needs_no_others(tmp_path) -> None:
    module = tf.Module()
    module.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1]), -1)
    module.look = tf.function(
        lambda x: tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y + 1), (0, module.table.lookup(x)))[1],
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    tf.saved_model.save(module, str(tmp_path))
    assert operators_of(tmp_path) == ()
    with pytest.raises(ExportError, match="no SavedModel"):
        operators_of(tmp_path / "away")


def test_options_need_a_model_that_captions(tmp_path) -> None:
    run = load_run(untrained_run(tmp_path / "run", "contrastive"))
    with pytest.raises(ExportError, match="does not caption pictures.*found contrastive; leave --with-options out"):
        export_model(run, tmp_path / "export", with_options=True)
    with pytest.raises(ExportError, match="impossible batch size: expected at least 1, found 0"):
        export_model(run, tmp_path / "export", batch_size=0)
    assert not (tmp_path / "export").exists()
