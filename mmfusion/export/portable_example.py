"""Runs this export on a picture: embedding, caption, and how well a sentence of token ids fits.

Needs numpy, Pillow, and ai-edge-litert for model.tflite or onnxruntime for the .onnx files; nothing else.

python examples/run.py [PICTURE] [TOKEN_ID ...]
python examples/run.py --batch REQUEST.npz ANSWER.npz
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = HERE.parent
Arrays = dict[str, np.ndarray]


def open_functions(described: dict[str, Any]) -> dict[str, Callable[..., Arrays]]:
    """The functions by name, from named arrays to named arrays."""
    if described["kind"] != "onnx":
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(FOLDER / "model.tflite"))
        return {name: interpreter.get_signature_runner(name) for name in described["functions"]}

    import onnxruntime

    def opened(name: str) -> Callable[..., Arrays]:
        session = onnxruntime.InferenceSession(str(FOLDER / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        known = {put.name for put in session.get_inputs()}
        outputs = [output.name for output in session.get_outputs()]

        def run(**inputs: np.ndarray) -> Arrays:
            given = {key: np.asarray(value) for key, value in inputs.items() if key in known}
            return dict(zip(outputs, session.run(outputs, given), strict=True))

        return run

    return {name: opened(name) for name in described["functions"]}


def step_with_cache(described: dict[str, Any], functions: dict[str, Any], token_ids: np.ndarray, state: Arrays) -> Any:
    """Scores of the next token, and the state after this one."""
    answer = functions["caption_step"](token_ids=token_ids.astype("int32"), **state)
    # What a step does not change, the keys and values of the picture among it, has no next one.
    return answer["logits"], {name: answer[new] if new else state[name] for name, new in described["state"].items()}


def write(described: dict[str, Any], functions: dict[str, Any], pictures: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Greedy captions: token ids, and the mean log-probability of a token."""
    options, count = described["decoding"], len(pictures["pixels"])
    state = functions["caption_start"](**pictures)
    last = np.full(count, options["start_id"], "int32")
    written = np.full((count, options["max_tokens"]), options["pad_id"], "int32")
    total, lengths, ended = np.zeros(count), np.zeros(count), np.zeros(count, bool)
    never = sorted({options["pad_id"], *options["forbidden_ids"]} - {options["end_id"]})
    for place in range(options["max_tokens"]):
        logits, state = step_with_cache(described, functions, last, state)
        scores = logits - logits.max(-1, keepdims=True)
        scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
        scores[:, never] = -np.inf
        if place < options["min_tokens"]:
            scores[:, options["end_id"]] = -np.inf
        last = np.where(ended, options["pad_id"], scores.argmax(-1)).astype("int32")
        written[:, place] = last
        total += np.where(ended, 0, scores.max(-1))
        lengths += ~ended
        ended |= last == options["end_id"]
        if ended.all():
            break
    return written, total / lengths


def ask(described: dict[str, Any], functions: dict[str, Any], inputs: Arrays) -> Arrays:
    """Answers of all functions, as {"function/output": array}."""
    answers: Arrays = {}
    for name in ("encode_image", "encode_text", "match"):
        if name in functions:
            given = {key: inputs[key] for key in described["functions"][name]["inputs"]}
            answers |= {f"{name}/{key}": value for key, value in functions[name](**given).items()}
    if "caption_start" in functions:
        pictures = {key: inputs[key] for key in described["functions"]["caption_start"]["inputs"]}
        answers["caption/token_ids"], answers["caption/score"] = write(described, functions, pictures)
        # The scores of each next token of a sentence that is given.
        state, logits = functions["caption_start"](**pictures), []
        for place in range(min(described["decoding"]["max_tokens"], inputs["token_ids"].shape[1] - 1)):
            scores, state = step_with_cache(described, functions, inputs["token_ids"][:, place], state)
            logits.append(scores)
        answers["caption_step/logits"] = np.stack(logits, axis=1)
    return answers


def read_picture(path: pathlib.Path, transform: dict[str, Any]) -> np.ndarray:
    """A picture as the model sees it; Pillow's resizing differs a little from TensorFlow's."""
    from PIL import Image, ImageOps

    height, width = transform["size"]
    how = {"area": "BOX", "lanczos3": "LANCZOS"}.get(transform["interpolation"], transform["interpolation"].upper())
    kernel = Image.Resampling[how]
    image: Any = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    if transform["resize"] == "crop":
        image = ImageOps.fit(image, (width, height), kernel)
    elif transform["resize"] == "pad":
        colour = tuple(round(255 * value) for value in transform["mean"])
        image = ImageOps.pad(image, (width, height), kernel, color=colour)
    else:
        image = image.resize((width, height), kernel)
    pixels = (np.asarray(image, "float32") / 255 - np.float32(transform["mean"])) / np.float32(transform["std"])
    return pixels.astype("float32")


def example_inputs(described: dict[str, Any], arguments: list[str]) -> Arrays:
    """One picture and one sentence, as often as the functions want them."""
    picture = pathlib.Path(arguments[0]) if arguments else HERE / "picture.jpg"
    pixels, length = read_picture(picture, described["transform"]), described["max_tokens"]
    inputs = {"pixels": pixels}
    if described["frames"] > 1:
        # A clip of one frame.
        mask = np.arange(described["frames"]) == 0
        inputs = {"pixels": np.where(mask[:, None, None, None], pixels, np.float32(0)), "image_mask": mask}
    words = (FOLDER / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
    sentence = [int(token) for token in arguments[1:]] or [words.index("[CLS]"), words.index("[SEP]")]
    inputs["token_ids"] = np.array((sentence + [words.index("[PAD]")] * length)[:length], "int32")
    inputs["token_mask"] = np.arange(length) < len(sentence)
    return {name: np.stack([value] * (described["batch_size"] or 1)) for name, value in inputs.items()}


def as_text(token_ids: np.ndarray) -> str:
    """Tokens as words, without those in brackets."""
    words = (FOLDER / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
    tokens = [words[token] for token in token_ids if not words[token].startswith("[")]
    return " ".join(tokens).replace(" ##", "")


def main(arguments: list[str]) -> None:
    """Answers for one picture, or for a file of pixels and token ids."""
    described = json.loads((FOLDER / "mmfusion.json").read_text(encoding="utf-8"))
    functions = open_functions(described)
    if arguments[:1] == ["--batch"]:
        with np.load(arguments[1], allow_pickle=False) as request:
            answers: Any = ask(described, functions, {name: request[name] for name in request.files})
        np.savez(arguments[2], **answers)
        print(sorted({name.split(".")[0] for name in sys.modules} & {"keras", "mmfusion", "tensorflow"}))
        return
    answers = ask(described, functions, example_inputs(described, arguments))
    for key, value in answers.items():
        print(f"{key:24} {value.shape!s:16} {value.ravel()[:4]}")
    if "caption/token_ids" in answers:
        print("caption:", as_text(answers["caption/token_ids"][0]))


if __name__ == "__main__":
    main(sys.argv[1:])
