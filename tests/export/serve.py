"""A process that serves an export with tensorflow and tensorflow_text alone: FOLDER REQUEST.npz ANSWER.npz."""

import json
import sys

if __name__ == "__main__":
    import numpy as np
    import tensorflow as tf
    import tensorflow_text  # noqa: F401

    folder, request_path, answer_path = sys.argv[1:]
    model = tf.saved_model.load(folder)
    request = np.load(request_path, allow_pickle=False)
    ends = np.cumsum(request["lengths"])
    images = [request["bytes"].tobytes()[end - length : end] for end, length in zip(ends, request["lengths"], strict=True)]
    values = {
        "image_bytes": tf.constant(images),
        "text": tf.constant([str(text) for text in request["texts"]]),
        "token_ids": tf.constant(request["token_ids"]),
        "token_mask": tf.constant(request["token_mask"]),
    }
    answers, described = {}, {}
    for name, signature in model.signatures.items():
        inputs = signature.structured_input_signature[1]
        described[name] = {
            "inputs": {key: [spec.dtype.name, spec.shape.as_list()] for key, spec in inputs.items()},
            "outputs": {key: [spec.dtype.name, spec.shape.as_list()] for key, spec in signature.structured_outputs.items()},
        }
        for output, value in signature(**{key: values[key] for key in inputs}).items():
            array = value.numpy()
            if array.dtype == object:
                array = np.array([item.decode() for item in array.ravel()]).reshape(array.shape)
            answers[f"{name}/{output}"] = array
    # Any batch size, none and one and more than was traced with, and what comes of garbage.
    for count in (0, 1, 5):
        batch = tf.constant((images * 2)[:count], tf.string)
        for name in set(model.signatures) & {"encode_image", "caption"}:
            for output, value in model.signatures[name](image_bytes=batch).items():
                answers[f"{count}:{name}/{output}"] = np.array(value.shape)
    errors = []
    for garbage in (b"no picture", b"", images[0][: len(images[0]) // 2], images[0][:30], b"\x89PNG\r\n\x1a\n" + bytes(40)):
        try:
            model.signatures["encode_image"](image_bytes=tf.constant([images[0], garbage]))
            errors.append("no error")
        except tf.errors.OpError as error:
            errors.append(type(error).__name__)
        except UnicodeDecodeError:
            errors.append("InvalidArgumentError")  # TensorFlow quotes the bytes in its message and fails to decode it.
    encode = model.signatures["encode_text_ids"]
    longest = values["token_ids"].shape[1]
    for ids, mask in (
        ([[-1, 5]], [[True, True]]),
        ([[2, 10**6]], [[True, True]]),
        ([[2, 5]], [[True]]),
        ([[2] * (longest + 40)], [[True] * (longest + 40)]),
    ):
        try:
            encode(token_ids=tf.constant(ids, tf.int32), token_mask=tf.constant(mask))
            errors.append("no error")
        except tf.errors.OpError as error:
            errors.append(f"{type(error).__name__}: {'expected' in error.message}")
    np.savez(answer_path, **answers)
    imported = sorted(name for name in ("keras", "mmfusion", "tf_keras") if name in sys.modules)
    print(json.dumps({"signatures": described, "errors": errors, "imported": imported}))
