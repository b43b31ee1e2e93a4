"""What a recipe stands for: data, tokenizer, image transform and model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import keras

from mmfusion.data import ClipTransform, Example, ImageTransform, Source, Transform, open_source
from mmfusion.errors import CheckpointError, DataError
from mmfusion.models import ImageTextModel, build_model, in_number_format
from mmfusion.text import WordPieceTokenizer, read_vocabulary, train_vocabulary, write_vocabulary
from mmfusion.training.run_folder import RunFolder

if TYPE_CHECKING:
    from mmfusion.config import Recipe


@dataclass(frozen=True)
class LoadedRun:
    """A finished (or best so far) run, ready for use.

    Attributes:
        folder: Where it lies.
        recipe: Its resolved recipe.
        model: Its best model.
        tokenizer: Its tokenizer.
        transform: From image files to the model's pixels.
        precision: The number format that the model was brought to; None is as it was trained.
    """

    folder: RunFolder
    recipe: Recipe
    model: ImageTextModel
    tokenizer: WordPieceTokenizer
    transform: Transform
    precision: str | None = None

    def in_number_format(self, precision: str) -> LoadedRun:
        """The same with a copy of the model in another number format; see `mmfusion.models.in_number_format`.

        Args:
            precision: One of `mmfusion.models.NUMBER_FORMATS`.
        """
        return replace(self, model=in_number_format(self.model, precision), precision=precision)


def load_run(path: str | Path, *, precision: str | None = None) -> LoadedRun:
    """Loads the best model of a run folder.

    Args:
        path: The folder, as `mmfusion train` makes it.
        precision: The number format that the model shall have, one of `mmfusion.models.NUMBER_FORMATS`. Default: the one that it
            was trained in.

    Returns:
        The `LoadedRun`.

    Raises:
        CheckpointError: If it is no run folder, has no model yet, the model's file is broken, or the vocabulary or the recipe
            beside it are not those that it was trained with.
        ConfigError: If there is no such number format.
    """
    from mmfusion.config import load_recipe

    folder = RunFolder(path).require()
    recipe = load_recipe(folder.recipe)
    try:
        model = keras.saving.load_model(folder.best_model)
    except Exception as error:
        raise CheckpointError("cannot load the model", where=folder.best_model, found=str(error).splitlines()[0][:200]) from error
    tokenizer = load_tokenizer(recipe, folder.vocabulary)
    _check_fit(folder, model, tokenizer, image_transform(recipe))
    run = LoadedRun(folder, recipe, model, tokenizer, image_transform(recipe))
    return run if precision is None else run.in_number_format(precision)


def _check_fit(folder: RunFolder, model: ImageTextModel, tokenizer: WordPieceTokenizer, transform: Transform) -> None:
    text, image = model.text_encoder, model.image_encoder
    for what, path, expected, found in (
        ("vocabulary", folder.vocabulary, text.vocabulary_size, tokenizer.vocabulary_size),
        ("text.max_tokens", folder.recipe, text.max_length, tokenizer.max_length),
        ("data.image_size", folder.recipe, tuple(image.image_size), tuple(transform.size)),
        ("data.frames", folder.recipe, getattr(image, "num_frames", getattr(image, "max_images", 1)), transform.frames),
    ):
        if expected != found:
            raise CheckpointError(
                f"{what} does not fit the model",
                where=path,
                expected=f"{expected}, as {folder.best_model.name} has",
                found=found,
                fix="restore the file that the model was trained with",
            )


def load_tokenizer(recipe: Recipe, vocabulary: str | Path) -> WordPieceTokenizer:
    """The tokenizer of a recipe with a vocabulary file."""
    return WordPieceTokenizer(
        vocabulary=read_vocabulary(vocabulary), lowercase=recipe.text.lowercase, max_length=recipe.text.max_tokens
    )


def prepare_tokenizer(recipe: Recipe, source: Source, vocabulary: Path) -> WordPieceTokenizer:
    """The tokenizer of a new run: its vocabulary loaded or trained, and written to the run folder.

    Args:
        recipe: The recipe.
        source: Its data; the training split's captions train the vocabulary where the recipe names none.
        vocabulary: Where the vocabulary goes; one that is there already is used.

    Returns:
        The tokenizer.
    """
    if not vocabulary.is_file():
        if recipe.text.vocabulary is not None:
            tokens = read_vocabulary(recipe.text.vocabulary)
        else:
            texts = (text for example in examples_of(source, recipe.data.train_split) for text in _texts_of(example))
            tokens = train_vocabulary(texts, size=recipe.text.vocabulary_size, lowercase=recipe.text.lowercase)
        write_vocabulary(tokens, vocabulary)
    return load_tokenizer(recipe, vocabulary)


def _texts_of(example: Example) -> tuple[str, ...]:
    return example.captions if example.source_text is None else (example.source_text, *example.captions)


def image_transform(recipe: Recipe) -> Transform:
    """From image files to the model's pixels, as the recipe says."""
    data = recipe.data
    image = ImageTransform(size=data.size, resize=data.resize, mean=data.mean, std=data.std)
    return image if data.frames == 1 else ClipTransform(image, frames=data.frames, sampling=data.frame_sampling)


def examples_of(source: Source, split: str) -> list:
    """The examples of a split.

    Raises:
        DataError: If the source has no such split.
    """
    if split not in source.splits:
        raise DataError(
            "no such split",
            where=source.name,
            expected=", ".join(sorted(source.splits)),
            found=split,
            fix="set data.train_split or data.validation_split",
        )
    return source.splits[split]


def prepare_source(recipe: Recipe) -> Source:
    """Opens the data of a recipe and makes sure that there is something to train on and to validate on.

    Raises:
        DataError: If a split is missing or has no usable example.
    """
    source = open_source(recipe.data)
    for split in (recipe.data.train_split, recipe.data.validation_split):
        if not examples_of(source, split):
            raise DataError("no usable example in the split", where=f"{source.name}: {split}", found="0 examples")
    return source


def prepare_model(recipe: Recipe, tokenizer: WordPieceTokenizer) -> ImageTextModel:
    """A fresh model of the recipe, in its precision."""
    return build_model(
        recipe,
        vocabulary_size=tokenizer.vocabulary_size,
        start_id=tokenizer.start_id,
        end_id=tokenizer.end_id,
        pad_id=tokenizer.pad_id,
        mask_id=tokenizer.mask_id,
        forbidden_ids=tokenizer.special_ids,
        dtype="mixed_bfloat16" if recipe.train.precision == "bfloat16" else "float32",
    )
