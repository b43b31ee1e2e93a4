"""Which operators a SavedModel needs beyond TensorFlow's own."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from mmfusion.errors import ExportError


def operators_of(folder: str | Path) -> tuple[str, ...]:
    """Names of a SavedModel's operators that TensorFlow itself does not have, sorted: those of tensorflow-text.

    Args:
        folder: The SavedModel's.

    Raises:
        ExportError: If there is none.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    file = Path(folder) / "saved_model.pb"
    try:
        saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except (OSError, DecodeError) as error:
        raise ExportError("no SavedModel", where=folder, expected=file.name, found=str(error)[:200]) from error
    used = set()
    for graph in (meta_graph.graph_def for meta_graph in saved.meta_graphs):
        used |= {node.op for node in graph.node}
        used |= {node.op for function in graph.library.function for node in function.node_def}
        # A function is called by its name like an operator.
        used -= {function.signature.name for function in graph.library.function}
    # What begins with an underscore is TensorFlow's own, and not offered to people.
    return tuple(sorted(name for name in used if not name.startswith("_") and not hasattr(tf.raw_ops, name)))
