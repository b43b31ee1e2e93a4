"""A model's parts as functions from numbers to numbers: what a runtime without strings and image files can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from mmfusion.errors import ExportError
from mmfusion.layers.kernels.tiling import traced_for_elsewhere
from mmfusion.models import ImageTextModel
from mmfusion.models.captioning import first_state
from mmfusion.models.fusing import image_read

NEXT = "next_"


class NumericFunction(NamedTuple):
    """One traced function of named tensors.

    Attributes:
        call: What was traced, from named tensors to a dictionary of tensors.
        function: Its concrete function, which holds the model's variables.
        inputs: Its inputs by name.
        outputs: Its outputs by name.
    """

    call: Callable[..., dict[str, tf.Tensor]]
    function: Any
    inputs: dict[str, tf.TensorSpec]
    outputs: dict[str, tf.TensorSpec]

    @classmethod
    def traced(cls, call: Callable[..., dict[str, tf.Tensor]], inputs: Mapping[str, tf.TensorSpec]) -> NumericFunction:
        """Traces a function for inputs of these forms, by name."""
        specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in inputs.items()}
        function = _concrete(call, specs)
        answer = function.structured_outputs
        return cls(call, function, specs, {name: tf.TensorSpec(x.shape, x.dtype, name=name) for name, x in answer.items()})

    def of_weights(self, variables: Mapping[str, keras.Variable]) -> Any:
        """A concrete function that has these variables as inputs too, by their names here, and holds no weight.

        Raises:
            ValueError: If it needs a variable that is not among them.
        """

        def call(**given: tf.Tensor) -> dict[str, tf.Tensor]:
            mapping = [(variable, given.pop(name)) for name, variable in variables.items()]
            with keras.StatelessScope(state_mapping=mapping):
                return self.call(**given)

        weights = {name: tf.TensorSpec(variable.shape, variable.dtype, name=name) for name, variable in variables.items()}
        function = _concrete(call, self.inputs | weights)
        others = sorted(variable.name for variable in function.variables)
        if others:
            raise ValueError(f"the function needs variables that it was not given: {', '.join(others)}")
        return function


def numeric_functions(
    model: ImageTextModel,
    pixels_shape: tuple[int, ...],
    *,
    max_tokens: int | None = None,
    batch_size: int | None = None,
) -> dict[str, NumericFunction]:
    """The functions that a model's heads give, traced, with texts as long as the text encoder holds.

    ================= ========================================== ===========================================
    name              in                                         out
    ================= ========================================== ===========================================
    ``encode_image``  ``pixels``                                 ``embedding: float32[B, E]``, unit length
    ``encode_text``   ``token_ids``, ``token_mask``              ``embedding: float32[B, E]``, unit length
    ``match``         ``pixels``, ``token_ids``, ``token_mask``  ``score: float32[B]``, ``similarity: float32[B]``
    ``caption_start`` ``pixels``                                 ``state_00``, ``state_01``, …
    ``caption_step``  ``token_ids: int32[B]``, ``state_00``, …   ``logits: float32[B, V]``, ``next_state_00``, …
    ================= ========================================== ===========================================

    ``pixels`` are ``float32[B, H, W, 3]``; of clips and several images ``float32[B, F, H, W, 3]`` beside
    ``image_mask: bool[B, F]`` (``True`` = real picture). ``token_ids`` are ``int32[B, T]`` and ``token_mask`` ``bool[B, T]``
    (``True`` = real token). The state is the decoding cache, flat; its tensors have the batch first, or are scalars. What a step
    leaves as it was, such as the keys and values of the picture, has no ``next_``: the next step is given the same tensor.

    Args:
        model: The model.
        pixels_shape: Shape of an example's pixels, as `mmfusion.data.ImageTransform.shape` says it.
        max_tokens: Room of the decoding cache. Default: what the text encoder holds.
        batch_size: B. Default: free.

    Returns:
        The functions by name; what the model has no head for is left out.

    Raises:
        ExportError: If the model translates: its text comes with the picture.

    Example:
        >>> from mmfusion.export.numeric_functions import numeric_functions
        >>> from mmfusion.models import ImageTextModel
        >>> model = ImageTextModel.from_preset("clip", vocabulary_size=9, image_size=16, size="tiny")
        >>> functions = numeric_functions(model, (16, 16, 3))
        >>> sorted(functions), list(functions["encode_image"].inputs)
        (['encode_image', 'encode_text'], ['pixels'])
    """
    from mmfusion.export.serving_functions import translates

    if translates(model):
        raise ExportError(
            "a model that translates has no functions of a picture alone", where=model.name, fix="export it as a SavedModel"
        )
    length = model.text_encoder.max_length
    pictures = {"pixels": tf.TensorSpec([batch_size, *pixels_shape], tf.float32)}
    if len(pixels_shape) == 4:
        pictures["image_mask"] = tf.TensorSpec([batch_size, pixels_shape[0]], tf.bool)
    words = {
        "token_ids": tf.TensorSpec([batch_size, length], tf.int32),
        "token_mask": tf.TensorSpec([batch_size, length], tf.bool),
    }

    def patches_of(given: dict[str, tf.Tensor]) -> tuple[Any, Any]:
        return model.encode_patches(given["pixels"], given.get("image_mask"), training=False)

    def encode_image(**given: tf.Tensor) -> dict[str, tf.Tensor]:
        patches, mask = patches_of(given)
        return {"embedding": model.embed_patches(patches, training=False, patch_mask=mask)}

    def encode_text(**given: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"embedding": model.encode_text(given["token_ids"], given["token_mask"], training=False)}

    def match(**given: tf.Tensor) -> dict[str, tf.Tensor]:
        patches, patch_mask = patches_of(given)
        token_ids, token_mask = given["token_ids"], given["token_mask"]
        text = model.text_encoder(token_ids, token_mask=token_mask, training=False)
        logits = model.match_tokens(patches, text, token_mask, training=False, patch_mask=patch_mask)
        answer = {"score": tf.sigmoid(logits)}
        if model.contrastive_head is not None:
            image = model.embed_patches(patches, training=False, patch_mask=patch_mask)
            sentence = model.encode_text(token_ids, token_mask, training=False, text=text)
            answer["similarity"] = (1.0 + tf.reduce_sum(image * sentence, axis=-1)) / 2.0
        return answer

    functions: dict[str, NumericFunction] = {}
    if model.contrastive_head is not None:
        functions["encode_image"] = NumericFunction.traced(encode_image, pictures)
        functions["encode_text"] = NumericFunction.traced(encode_text, words)
    if model.matching_head is not None:
        functions["match"] = NumericFunction.traced(match, pictures | words)
    if model.captioning_head is not None:
        room = length - 1 if max_tokens is None else max_tokens
        functions |= _captioning(model, patches_of, pictures, room, batch_size)
    return functions


def carried_state(functions: Mapping[str, NumericFunction]) -> dict[str, str | None]:
    """What becomes of each tensor of the state: the name of the step's output that the next step is given, or None: it stays."""
    outputs = functions["caption_step"].outputs
    return {name: NEXT + name if NEXT + name in outputs else None for name in functions["caption_start"].outputs}


def _captioning(
    model: ImageTextModel,
    patches_of: Callable[[dict[str, tf.Tensor]], tuple[Any, Any]],
    pictures: dict[str, tf.TensorSpec],
    room: int,
    batch_size: int | None,
) -> dict[str, NumericFunction]:
    structure: list[Any] = []

    def start(**given: tf.Tensor) -> dict[str, tf.Tensor]:
        patches, mask = image_read(model, *patches_of(given))
        state = first_state(model, patches, mask, room)
        structure[:] = [state]
        leaves = [leaf for leaf in keras.tree.flatten(state) if leaf is not None]
        return {f"state_{number:02}": tf.convert_to_tensor(leaf) for number, leaf in enumerate(leaves)}

    started = NumericFunction.traced(start, pictures)

    def step(token_ids: tf.Tensor, **state: tf.Tensor) -> dict[str, tf.Tensor]:
        given = iter(state[name] for name in started.outputs)
        flat = [None if leaf is None else next(given) for leaf in keras.tree.flatten(structure[0])]
        logits, new = model.caption_step(token_ids, keras.tree.pack_sequence_as(structure[0], flat))
        leaves = [leaf for leaf in keras.tree.flatten(new) if leaf is not None]
        changed = {NEXT + name: leaf for name, leaf in zip(started.outputs, leaves, strict=True) if leaf is not state[name]}
        return {"logits": tf.cast(logits, tf.float32), **changed}

    token_ids = {"token_ids": tf.TensorSpec([batch_size], tf.int32)}
    return {"caption_start": started, "caption_step": NumericFunction.traced(step, token_ids | started.outputs)}


def _concrete(function: Callable[..., dict[str, tf.Tensor]], specs: dict[str, tf.TensorSpec]) -> Any:
    with traced_for_elsewhere():
        return tf.function(function, autograph=False).get_concrete_function(**specs)
