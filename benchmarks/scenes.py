"""Which fusion styles can tell "red square left of blue circle" from its swap, and where their attention points.

    python benchmarks/scenes.py                         # all styles; KERAS_BACKEND=jax runs it on JAX (a GPU, say)
    python benchmarks/scenes.py --models dual cross --steps 400 --folder runs/scenes-short --docs none --figure none

What was measured is kept in a folder with the settings that it was measured with, and what is there already with the same
settings is not trained again: several processes can share the work, each with some of the models, and one more draws table and
figure.

Drawn scenes (`mmfusion.data.draw_scenes`) on a grid of a patch a cell, so that it is the fusion that is asked, not the eye: a
caption and its swap have the same words. Every model sees the same training scenes; the test scenes have pairs of objects that
training never had. A fusing model learns to say the captions, one word after the other, and nothing else: no swap is shown to
it. A batch has every scene of it told from both of its objects, so that which one a caption starts with is no noise. How well a
text fits a picture is how likely the model would say it. `choice` is how often the caption then beats its swap, `words` how often
it beats a caption with one other word. `pointing` is how often the attention of an object's two words, summed over heads and
layers, has its maximum inside that object's box. `recurrent` asks the image before it reads a word, to say the next one: there
the attention with which a word is said counts, that of the place before it, as in its paper.

Three dual encoders stand beside them, with as many blocks: `dual` learns by contrast within the batch, where scenes of the same
two objects do not count as negatives; for `dual_batch` they do, whenever two such happen to meet; `dual_negatives` learns each
caption beside its swap and beside one with another word, which no other model is given.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from common import REPOSITORY, device_description, emit
from keras import ops

from mmfusion.data.drawn_scenes import MAX_TOKENS, VOCABULARY, DrawnScenes, draw_scenes
from mmfusion.encoders import TextTransformer, VisionTransformer
from mmfusion.fusion import STYLES, RecurrentFusion
from mmfusion.losses import captioning_loss, softmax_contrastive
from mmfusion.models import CaptioningHead, ContrastiveHead, ImageTextModel

# Dual encoders, and the captions that each holds its own against.
DUALS = {"dual": "other_objects", "dual_batch": "batch", "dual_negatives": "candidates"}
SIZE, GRID, DIM, HEADS, BATCH = 32, 4, 64, 4, 64
PATCH = SIZE // GRID
SHOWN = 2
START, END = VOCABULARY.index("[CLS]"), VOCABULARY.index("[SEP]")
CANDIDATES = ("token_ids", "swap_ids", "other_ids")
# Which objects there are is learned within some hundred steps, how they lie to each other only later, and all at once: later
# still where the text sees the image through a few tokens.
LONGER = {"merged": 2, "bottleneck": 2, "resampler": 3, "qformer": 3, "late": 3}
# Weights of two axes that multiply nothing, or give the output: not for Muon, as its authors say.
NO_MATRICES = ["captioning_head", "latents$", "queries$", "bottleneck$", "modality$", "pooling/query$"]
# Text reads the queries of a Q-Former from its second layer on: one more gives it the two readings that others have.
OPTIONS: dict[str, dict[str, Any]] = {
    "qformer": {"depth": 3, "cross_every": 1, "num_queries": 16},
    "resampler": {"num_latents": 16},
}
DOCS, FIGURE = REPOSITORY / "docs" / "scenes.md", REPOSITORY / "docs" / "figures" / "scenes_attention.png"


class Result(NamedTuple):
    """What a model can do.

    Attributes:
        name: A style, or a dual encoder.
        choice: Share of test scenes whose caption beats its swap.
        words: Share of test scenes whose caption beats the one with another word.
        pointing: Share of first and of second objects of captions whose words point at them; None where there is no attention.
        parameters: Of the model.
        seconds: Of training.
    """

    name: str
    choice: float
    words: float
    pointing: tuple[float, float] | None
    parameters: int
    seconds: float


class SceneTask(keras.Model):
    """A model with what it learns from scenes, and how well it finds that a text fits.

    Args:
        model: The model.
    """

    tellings = 1
    """How many captions of each scene a batch has: 2 are those of both objects."""

    def __init__(self, model: ImageTextModel) -> None:
        super().__init__()
        self.model = model

    def build(self, input_shape: Any = None) -> None:
        """The model is built already."""
        self.built = True

    def encode(self, inputs: dict[str, Any], training: bool | None = None) -> Any:
        """The pictures as texts are compared with them."""
        raise NotImplementedError

    def fit_of_text(self, image: Any, token_ids: Any, mask: Any, training: bool | None = None) -> Any:
        """``float32[B]``, higher where a text fits its encoded picture better."""
        raise NotImplementedError

    def fits(self, inputs: dict[str, Any], training: bool | None = None) -> Any:
        """How well caption, swap and other fit: ``float32[B, 3]``."""
        image, mask = self.encode(inputs, training), inputs["token_mask"]
        return ops.stack([self.fit_of_text(image, inputs[ids], mask, training) for ids in CANDIDATES], axis=1)

    def pair_ids(self, scenes: DrawnScenes) -> np.ndarray:
        """``int32[N]``; scenes of the same number are no negatives of each other."""
        return scenes.scene_id


class Captioner(SceneTask):
    """Learns to say captions; a text fits as well as it would be said."""

    tellings = 2

    def call(self, inputs: dict[str, Any], training: bool | None = None) -> Any:
        """``float32[B, T - 1, V]``: scores of each next word of the caption."""
        return self.logits(self.encode(inputs, training), inputs["token_ids"], inputs["token_mask"], training)

    def encode(self, inputs: dict[str, Any], training: bool | None = None) -> Any:
        """``float32[B, P, D]``, patches."""
        return self.model.image_encoder(inputs["image"], training=training)

    def logits(self, patches: Any, token_ids: Any, mask: Any, training: bool | None) -> Any:
        """Scores of each next word of a text."""
        return self.model.caption_logits(patches, token_ids[:, :-1], mask[:, :-1], training=training)

    def fit_of_text(self, image: Any, token_ids: Any, mask: Any, training: bool | None = None) -> Any:
        """``log p(text | image)``."""
        return -captioning_loss(self.logits(image, token_ids, mask, training), token_ids[:, 1:], mask[:, 1:]).loss_sum

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Mean cross-entropy of the words of a batch."""
        loss = captioning_loss(y_pred, x["token_ids"][:, 1:], x["token_mask"][:, 1:])
        return ops.sum(loss.loss_sum) / ops.cast(ops.sum(loss.tokens), "float32")


class DualEncoder(SceneTask):
    """Learns to embed a picture near its caption: nearer than others of its batch, or than its swap and another caption.

    Args:
        model: A model with a contrastive head.
        negatives: ``"batch"``; ``"other_objects"``: those of the batch that are not of the same two objects; ``"candidates"``:
            the swap and the other caption of each scene.
    """

    def __init__(self, model: ImageTextModel, *, negatives: str) -> None:
        super().__init__(model)
        self.negatives = negatives

    def call(self, inputs: dict[str, Any], training: bool | None = None) -> Any:
        """Both embeddings, or how well the three texts of each scene fit."""
        if self.negatives == "candidates":
            return self.fits(inputs, training)
        text = self.model.encode_text(inputs["token_ids"], inputs["token_mask"], training=training)
        return ops.stack([self.encode(inputs, training), text], axis=1)

    def encode(self, inputs: dict[str, Any], training: bool | None = None) -> Any:
        """``float32[B, E]``, embeddings."""
        return self.model.encode_image(inputs["image"], training=training)

    def fit_of_text(self, image: Any, token_ids: Any, mask: Any, training: bool | None = None) -> Any:
        """Cosine, scaled as it was learned."""
        head = self.model.contrastive_head
        return ops.sum(image * self.model.encode_text(token_ids, mask, training=training), axis=-1) * head.scale + head.bias

    def pair_ids(self, scenes: DrawnScenes) -> np.ndarray:
        """Of scenes, or of the two objects in them."""
        return same_objects(scenes) if self.negatives == "other_objects" else super().pair_ids(scenes)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The mean loss of a batch; `y` is from `pair_ids`."""
        if self.negatives == "candidates":
            return ops.mean(ops.softplus(y_pred[:, 1:] - y_pred[:, :1]))
        scale = self.model.contrastive_head.scale
        return ops.mean(softmax_contrastive(y_pred[:, 0], y_pred[:, 1], scale, image_id=y, duplicates="ignore"))


def build(name: str) -> SceneTask:
    """The model of a name, with fresh weights."""
    dual = name in DUALS
    model = ImageTextModel(
        image_encoder=VisionTransformer(
            image_size=SIZE, patch_size=PATCH, dim=DIM, depth=image_blocks(name), num_heads=HEADS, positions="sinusoidal"
        ),
        text_encoder=TextTransformer(
            vocabulary_size=len(VOCABULARY), max_length=MAX_TOKENS, dim=DIM, depth=3 if dual else 1, num_heads=HEADS
        ),
        fusion=None if dual else STYLES[name](**{"dim": DIM, "depth": 2, "num_heads": HEADS, **OPTIONS.get(name, {})}),
        contrastive_head=ContrastiveHead(embedding_dim=DIM) if dual else None,
        captioning_head=None if dual else CaptioningHead(start_id=START, end_id=END),
    )
    return DualEncoder(model, negatives=DUALS[name]) if dual else Captioner(model)


def image_blocks(name: str) -> int:
    """Layers of the image encoder.

    A dual encoder gets the blocks of the fusion for its towers, and so does `late`, whose patches meet nowhere else. Those of the
    other styles hold what lies in them and nothing more, so that what brings objects, places and words together is the fusion.
    """
    return 3 if name in DUALS else 2 if name == "late" else 0


def inputs_of(scenes: DrawnScenes) -> dict[str, np.ndarray]:
    """As `SceneTask` takes them."""
    return {
        "image": scenes.images.astype("float32") / 127.5 - 1.0,
        "token_ids": scenes.token_ids,
        "retold_ids": scenes.retold_ids,
        "swap_ids": scenes.swap_ids,
        "other_ids": scenes.other_ids,
        "token_mask": scenes.token_mask,
    }


def train(task: SceneTask, scenes: DrawnScenes, *, steps: int, seed: int = 0, learning_rate: float = 2e-3) -> float:
    """Trains for so many steps and says how many seconds it took."""
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(steps - steps // 10, 1), warmup_target=learning_rate, warmup_steps=max(steps // 10, 1)
    )
    optimizer = keras.optimizers.Muon(
        schedule, weight_decay=0.01, adam_weight_decay=0.01, adam_beta_2=0.98, global_clipnorm=1.0, exclude_layers=NO_MATRICES
    )
    task.compile(optimizer=optimizer, jit_compile="auto")
    inputs, started = inputs_of(scenes), time.perf_counter()
    ids, drawn = task.pair_ids(scenes), BATCH // task.tellings
    random, count, done = np.random.default_rng(seed), len(scenes.images), 0
    # Whole epochs of Keras would not end at a step.
    while done < steps:
        batches = random.permutation(count)[: min(count // drawn, steps - done) * drawn].reshape(-1, drawn)
        rows = np.tile(batches, task.tellings).ravel()
        part = {name: values[rows] for name, values in inputs.items()}
        retold = np.arange(len(rows)) % BATCH >= drawn
        part["token_ids"] = np.where(retold[:, None], part["retold_ids"], part["token_ids"])
        loss = task.fit(part, ids[rows], batch_size=BATCH, epochs=1, shuffle=False, verbose=0).history["loss"][0]
        done += len(batches)
        print(f"step {done}/{steps}, loss {loss:.3f}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return time.perf_counter() - started


def measure(name: str, task: SceneTask, scenes: DrawnScenes, seconds: float = 0.0) -> Result:
    """Scores of a trained model on scenes."""
    scores = fits_of(task, scenes)
    return Result(
        name=name,
        choice=float((scores[:, 0] > scores[:, 1]).mean()),
        words=float((scores[:, 0] > scores[:, 2]).mean()),
        pointing=None if name in DUALS else tuple(pointing_hits(attention_of(task, scenes), scenes).mean(axis=0).tolist()),
        parameters=task.model.count_params(),
        seconds=seconds,
    )


def fits_of(task: SceneTask, scenes: DrawnScenes, batch: int = 200) -> np.ndarray:
    """How well caption, swap and other fit: ``float32[N, 3]``."""
    inputs, fits = inputs_of(scenes), []
    for start in range(0, len(scenes.images), batch):
        part = {name: values[start : start + batch] for name, values in inputs.items()}
        fits.append(ops.convert_to_numpy(task.fits(part)))
    return np.concatenate(fits)


def attention_of(task: SceneTask, scenes: DrawnScenes, batch: int = 200) -> np.ndarray:
    """Where the two words of each object look, summed over heads and layers: ``float32[N, 2, rows, cols]``."""
    inputs, maps = inputs_of(scenes), []
    said_before_read = isinstance(task.model.fusion, RecurrentFusion)
    for start in range(0, len(scenes.images), batch):
        rows = slice(start, start + batch)
        scores = task.model.attend(inputs["image"][rows], inputs["token_ids"][rows], inputs["token_mask"][rows])
        words = ops.convert_to_numpy(ops.sum(ops.cast(scores, "float32"), axis=(1, 2)))
        places = scenes.object_places[rows] - int(said_before_read)
        maps.append(words[np.arange(len(words))[:, None, None], places].sum(axis=2))
    return np.concatenate(maps)


def pointing_hits(maps: np.ndarray, scenes: DrawnScenes) -> np.ndarray:
    """Whether the middle of the strongest patch lies inside the object's box: ``bool[N, 2]``."""
    count, objects, _, columns = maps.shape
    best = maps.reshape(count, objects, -1).argmax(axis=-1)
    row, column = (np.stack(np.divmod(best, columns)) + 0.5) * PATCH
    top, left, bottom, right = np.moveaxis(scenes.boxes, -1, 0)
    peaked = np.ptp(maps.reshape(count, objects, -1), axis=-1) > 0
    return (row >= top) & (row < bottom) & (column >= left) & (column < right) & peaked


def same_objects(scenes: DrawnScenes) -> np.ndarray:
    """``int32[N]``, the same for scenes of the same two objects, however they lie."""
    words = np.sort(
        np.stack(
            [
                scenes.token_ids[np.arange(len(scenes.images))[:, None], places]
                for places in np.moveaxis(scenes.object_places, 1, 0)
            ],
            axis=1,
        ).astype(np.int64)
        @ [len(VOCABULARY), 1],
        axis=1,
    )
    return (words @ [len(VOCABULARY) ** 2, 1]).astype(np.int32)


def main(arguments: list[str] | None = None) -> None:
    """Trains and measures what the arguments ask for; prints a line each, writes the table and the figure."""
    options = read_arguments(arguments)
    missing = [name for name in options.models if measured(name, options) is None]
    test = draw_scenes(options.test_scenes, seed=options.seed + 2, pairs="held_out", size=SIZE, grid=GRID)
    training = draw_scenes(options.scenes, seed=options.seed + 1, pairs="train", size=SIZE, grid=GRID) if missing else None
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in missing:
        keras.utils.set_random_seed(options.seed)
        task = build(name)
        print(f"== {name}", file=sys.stderr)
        settings = settings_of(name, options)
        result = measure(name, task, test, train(task, training, steps=settings["steps"], seed=options.seed))
        if name not in DUALS:
            np.save(options.folder / f"{name}.npy", attention_of(task, _first(test, SHOWN)))
        device = {"backend": keras.backend.backend(), "device": device_description()}
        kept = {"result": result._asdict(), "settings": settings, "details": device}
        (options.folder / f"{name}.json").write_text(json.dumps(kept) + "\n", encoding="utf-8")
        emit(f"scenes.{name}.choice", 100 * result.choice, "%", peer="chance", peer_value=50.0, details=kept)
    kept = [row for name in options.models if (row := measured(name, options)) is not None]
    shown = {name: np.load(path) for name in options.models if (path := options.folder / f"{name}.npy").is_file()}
    results = [Result(**row["result"]) for row in kept]
    if options.docs != "none":
        write_table(results, Path(options.docs), [row["settings"] | row["details"] for row in kept], options)
    if options.figure != "none" and shown:
        draw_attention(shown, _first(test, SHOWN), Path(options.figure))


def settings_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All that a measurement of a model depends on."""
    return {
        "steps": options.steps * LONGER.get(name, 1),
        "batch": BATCH,
        "tellings": (DualEncoder if name in DUALS else Captioner).tellings,
        "scenes": options.scenes,
        "test_scenes": options.test_scenes,
        "seed": options.seed,
        "options": OPTIONS.get(name, {}),
        "image_blocks": image_blocks(name),
    }


def measured(name: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """What was kept of a model, if it was measured with these settings."""
    path = options.folder / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return kept if kept.get("settings") == settings_of(name, options) else None


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    names = [*DUALS, *STYLES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=names, choices=names)
    parser.add_argument("--steps", type=int, default=2500, help="steps of training; some styles get two or three times as many")
    parser.add_argument("--scenes", type=int, default=12_000, help="training scenes")
    parser.add_argument("--test-scenes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs" / "scenes", help="where measurements are kept")
    parser.add_argument("--docs", default=str(DOCS), help="the file for the table; none writes none")
    parser.add_argument("--figure", default=str(FIGURE), help="the file for the picture; none draws none")
    return parser.parse_args(arguments)


def _first(scenes: DrawnScenes, count: int) -> DrawnScenes:
    return DrawnScenes(*(values[:count] for values in scenes))


def write_table(results: list[Result], path: Path, details: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The table between the two marks of a page, what stands around it is kept."""

    def percent(*values: float) -> str:
        return " / ".join(f"{100 * value:.1f}" for value in values) or "–"

    lines = [
        f"Made by `python benchmarks/scenes.py`: {BATCH} scenes a step, {details[0]['scenes']:,} training scenes, "
        f"{options.test_scenes:,} test scenes of pairs of objects that training never had, pictures of {SIZE} x {SIZE} pixels, "
        f"seed {options.seed}, Muon, Keras on {details[0]['backend']}, {details[0]['device']}. Chance: 50 % for choice and "
        f"words, one patch in {GRID**2} for pointing, one in two for a model that looks at objects but does not know which.",
        "",
        "| model | choice, % | words, % | pointing, first / second object, % | parameters | steps |",
        "|---|---|---|---|---|---|",
        *(
            f"| `{row.name}` | {percent(row.choice)} | {percent(row.words)} | {percent(*row.pointing or ())} "
            f"| {row.parameters:,} | {detail['steps']:,} |"
            for row, detail in zip(results, details, strict=True)
        ),
    ]
    begin, end = "<!-- table -->", "<!-- end of table -->"
    page = path.read_text(encoding="utf-8") if path.is_file() else f"# Drawn scenes\n\n{begin}\n{end}\n"
    before, after = page.split(begin)[0], page.split(end)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{after}", encoding="utf-8")
    print(f"wrote {path}", file=sys.stderr)


def draw_attention(maps: dict[str, np.ndarray], scenes: DrawnScenes, path: Path) -> None:
    """A row a style: two scenes, and where the words of each of their objects look."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    columns = 3 * len(scenes.images)
    figure, axes = plt.subplots(len(maps), columns, figsize=(1.9 * columns, 1.95 * len(maps)), squeeze=False)
    for row, (name, values) in zip(axes, maps.items(), strict=True):
        for index, picture in enumerate(scenes.images):
            cells = row[3 * index : 3 * index + 3]
            cells[0].imshow(picture)
            cells[0].set_ylabel(name, fontsize=11)
            words = scenes.captions[index].split()
            for number, cell in enumerate(cells[1:]):
                heat = np.kron(values[index, number], np.ones((PATCH, PATCH)))
                cell.imshow(picture)
                cell.imshow(heat, cmap="inferno", alpha=0.65)
                top, left, bottom, right = scenes.boxes[index, number]
                box = plt.Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="white", lw=1.5)
                cell.add_patch(box)
                first, last = scenes.object_places[index, number] - 1
                cell.set_title(f"“{words[first]} {words[last]}”", fontsize=9)
            cells[0].set_title(textwrap.fill(scenes.captions[index], 20), fontsize=8)
    for cell in axes.flat:
        cell.set_xticks([])
        cell.set_yticks([])
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
