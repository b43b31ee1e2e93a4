"""What several frames tell that one does not: the motion word of a clip, and the order of two pictures.

    python benchmarks/clips.py                          # all variants; an hour on two cores
    python benchmarks/clips.py --variants factorised still --set train.epochs=10

Clips and pairs are made (`mmfusion data make-clips`), models trained and measured as `mmfusion train` does it, from
`configs/video.yaml` and `configs/several_images.yaml`. A figure is how often the caption that belongs to a clip beats those that
differ in the motion alone (six motions: chance 1/6), or a pair's those in the other order (chance 1/2), on clips that training
never saw: by similarity, and in `details` by the matching head; there too the recall of clips by their captions. The peer is the
same model that sees the first frame alone (`still`), or whose images never meet in the encoder (`apart`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import REPOSITORY, emit

from mmfusion.config import load_recipe
from mmfusion.data import make_clips, read_jsonl
from mmfusion.data.clip_maker import MOTIONS
from mmfusion.export import Predictor, load
from mmfusion.training import train

VIDEO, SEVERAL = REPOSITORY / "configs" / "video.yaml", REPOSITORY / "configs" / "several_images.yaml"


class Variant(NamedTuple):
    """A model: its recipe, the data that it is for, what is changed, and whom it stands beside."""

    recipe: Path
    task: str
    changes: tuple[str, ...]
    peer: str | None


_ENCODER = "model.image_encoder"
STILL = ("data.frames=1", f"{_ENCODER}.kind=vit", f"{_ENCODER}.attention=null")
VARIANTS = {
    "still": Variant(VIDEO, "motion", STILL, None),
    "factorised": Variant(VIDEO, "motion", (), "still"),
    "tiled": Variant(VIDEO, "motion", (f"{_ENCODER}.attention=tiled",), "still"),
    "tiled in twos": Variant(VIDEO, "motion", (f"{_ENCODER}.attention=tiled", f"{_ENCODER}.tubelet_size=2"), "still"),
    "apart": Variant(SEVERAL, "order", (f"{_ENCODER}.joint_depth=0",), None),
    "joint": Variant(SEVERAL, "order", (), "apart"),
}


def choices_of(caption: str, task: str) -> list[str]:
    """Captions that differ from one in the motion or the order alone, that one first."""
    if task == "order":
        first, second = caption.removeprefix("first ").split(", then ")
        return [caption, f"first {second}, then {first}"]
    motion = next(motion for motion in MOTIONS if caption.endswith(motion))
    return [caption, *(caption.removesuffix(motion) + other for other in MOTIONS if other != motion)]


def measure(model: Predictor, folder: Path, task: str) -> dict[str, float]:
    """Shares of clips whose own caption wins, and recalls of clips by their captions."""
    rows = read_jsonl(folder).splits["val"]
    files: Any = [[image.path for image in row.images] if row.more_images else row.image.path for row in rows]
    captions = [choices_of(row.captions[0], task) for row in rows]
    texts = sorted({text for choices in captions for text in choices})
    place = {text: number for number, text in enumerate(texts)}
    images, words = model.encode_image(files), model.encode_text(texts)
    similarity = images @ words.T
    chosen = np.array([similarity[row, [place[text] for text in choices]].argmax() for row, choices in enumerate(captions)])
    pairs = [(file, text) for file, choices in zip(files, captions, strict=True) for text in choices]
    match = model.match([file for file, _ in pairs], [text for _, text in pairs]).reshape(len(rows), -1)
    own = similarity[:, [place[choices[0]] for choices in captions]]
    ranks = (own >= np.diag(own)[None]).sum(axis=0)  # of each caption's clip among all clips
    return {
        "by_similarity": float((chosen == 0).mean()),
        "by_matching": float((match.argmax(axis=1) == 0).mean()),
        "text_to_clip_r1": float((ranks <= 1).mean()),
        "text_to_clip_r10": float((ranks <= 10).mean()),
    }


def main() -> None:
    """Trains and measures what the arguments ask for; prints a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help="changes of the recipes")
    parser.add_argument("--folder", type=Path, help="where clips and runs stay, to be used again; default: a temporary folder")
    parser.add_argument("--things", type=int, default=40, help="how many different things")
    parser.add_argument("--copies", type=int, default=5, help="training clips of each thing and motion")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home, results = options.folder or Path(temporary), {}
        for name in options.variants:
            variant = VARIANTS[name]
            # In its name what made it: other clips would pass for these, and runs on them for runs on these.
            data = home / f"{variant.task}-{options.things}x{options.copies}"
            if not data.exists():
                make_clips(data, task=variant.task, copies=options.copies, things=options.things)
            recipe = load_recipe(variant.recipe, [f"data.path={data}", *variant.changes, *options.changes])
            started = time.perf_counter()
            run = train(recipe, home / "runs" / name.replace(" ", "-"))
            results[name] = measure(load(run.folder.path), data, variant.task)
            peer = results.get(variant.peer or "")
            emit(
                f"clips.{variant.task}.{name.replace(' ', '_')}",
                results[name]["by_similarity"],
                "share of captions told from those with another motion" if variant.task == "motion" else "share told in order",
                peer=variant.peer if peer else None,
                peer_value=peer["by_similarity"] if peer else None,
                details={
                    **{key: round(value, 4) for key, value in results[name].items()},
                    "chance": round(1 / len(choices_of(read_jsonl(data).splits["val"][0].captions[0], variant.task)), 4),
                    "clips": len(read_jsonl(data).splits["val"]),
                    "steps": run.step,
                    "seconds": round(time.perf_counter() - started),
                },
            )


if __name__ == "__main__":
    main()
