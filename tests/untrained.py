"""A run folder with a model that never trained: all that exports and searches need, in seconds."""

from __future__ import annotations

from pathlib import Path

from mmfusion.config import recipe_from_dict, save_recipe
from mmfusion.text import write_vocabulary
from mmfusion.training import RunFolder
from mmfusion.training.callbacks import save_model
from mmfusion.training.experiment import load_tokenizer, prepare_model

WORDS = ("a", "the", "dog", "cat", "red", "heart", "on", "sand", "runs", "sits", "man", "smiling", "face", "##s", ".")


def untrained_run(folder: Path, *heads: str, **sections: dict) -> Path:
    """Writes a run folder; `sections` change the recipe."""
    heads = heads or ("contrastive", "matching", "captioning")
    content = {
        "name": "untrained",
        "data": {"source": "builtin", "image_size": [24, 32], "resize": "pad"},
        "text": {"max_tokens": 9},
        "model": {
            "embedding_dim": 12,
            "heads": list(heads),
            "image_encoder": {"patch_size": 8, "dim": 16, "depth": 1, "num_heads": 2},
            "text_encoder": {"dim": 16, "depth": 1, "num_heads": 2},
        },
        "fusion": {"depth": 2, "num_heads": 4},
        "objective": {name: {} if name in heads else None for name in ("contrastive", "matching", "captioning")},
        "train": {"monitor": "val_loss"},
        "evaluation": {"rerank_top_k": 4 if {"contrastive", "matching"} <= set(heads) else 0},
        "decoding": {"method": "beam", "beam_size": 2},
        **sections,
    }
    run = RunFolder(folder)
    run.create()
    recipe = recipe_from_dict(content)
    save_recipe(recipe, run.recipe)
    write_vocabulary(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS], run.vocabulary)
    model = prepare_model(recipe, load_tokenizer(recipe, run.vocabulary))
    # As they start, embeddings of all pictures are alike: larger products tell them apart. Larger scales of layer normalisation
    # would not, and they make rounding a hundredfold.
    for weight in model.trainable_weights:
        if len(weight.shape) > 1:
            weight.assign(3.0 * weight)
    save_model(model, run.best_model)
    return folder
