"""A process that asks all exports in a folder, with TensorFlow alone: FOLDER PICTURES TEXTS.json ANSWERS.npz."""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    import numpy as np
    import tensorflow as tf
    import tensorflow_text  # noqa: F401

    folder, pictures, texts, answer_path = sys.argv[1:]
    inputs = {
        "image_bytes": tf.constant([path.read_bytes() for path in sorted(Path(pictures).iterdir())]),
        "text": tf.constant(json.loads(Path(texts).read_text())),
    }
    answers = {}
    for export in sorted(Path(folder).iterdir()):
        signatures = tf.saved_model.load(str(export)).signatures
        for name in ("match", "caption", "attend"):
            wanted = signatures[name].structured_input_signature[1]
            for output, value in signatures[name](**{key: inputs[key] for key in wanted}).items():
                answers[f"{export.name}/{name}/{output}"] = value.numpy().astype(str if value.dtype == tf.string else None)
    assert "mmfusion" not in sys.modules
    np.savez(answer_path, **answers)
