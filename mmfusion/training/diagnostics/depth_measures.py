"""How gradients, weights and updates change with depth: pure measures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

_NUMBERED = re.compile(r"^(?P<stem>.+?)_(?P<number>\d+)$")


def depth_groups(paths: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """Sorts variables into stacks of blocks, from the first block to the last.

    A stack is what shares a path up to a numbered part: ``image_encoder/block_0/…``, ``image_encoder/block_1/…`` are the
    blocks of ``image_encoder/block``. A part without number beside numbered ones (Keras's ``dense``, ``dense_1``) is its first.

    Args:
        paths: Paths of variables.

    Returns:
        For each stack of two blocks or more, the places of the variables of each block, by the block's path.

    Example:
        >>> depth_groups(["a/block_1/kernel", "a/block_0/kernel", "a/block_0/bias", "a/norm/gamma"])
        {'a/block': {'a/block_0': [1, 2], 'a/block_1': [0]}}
        >>> depth_groups(["dense/kernel", "dense_1/kernel"])
        {'dense': {'dense': [0], 'dense_1': [1]}}
    """
    # Which blocks there are at each level; what is numbered alone (a model's own name, say) is no stack.
    stacks: dict[str, set[tuple[int, str]]] = {}
    for block, stack, number in (item for path in paths for item in _blocks_of(path)):
        stacks.setdefault(stack, set()).add((number, block))
    stacks = {stack: blocks for stack, blocks in stacks.items() if len(blocks) > 1 and max(blocks)[0] >= 0}
    places: dict[str, list[int]] = {}
    for place, path in enumerate(paths):
        # The outermost stack counts: what is numbered inside of a block belongs to the block.
        for block in [block for block, stack, _ in _blocks_of(path) if stack in stacks][:1]:
            places.setdefault(block, []).append(place)
    groups = {stack: {block: places[block] for _, block in sorted(blocks) if block in places} for stack, blocks in stacks.items()}
    return {stack: blocks for stack, blocks in groups.items() if len(blocks) > 1}


def _blocks_of(path: str) -> list[tuple[str, str, int]]:
    """Each part of a path as a block: its path, the stack that it would belong to, its number (-1 without one)."""
    parts = path.split("/")[:-1]
    blocks = []
    for depth, part in enumerate(parts):
        match = _NUMBERED.match(part)
        stem, number = (match["stem"], int(match["number"])) if match else (part, -1)
        blocks.append(("/".join(parts[: depth + 1]), "/".join([*parts[:depth], stem]), number))
    return blocks


def joint_norm(norms: Sequence[float]) -> float:
    """The norm of parts together, ``√Σ norm²``.

    Example:
        >>> joint_norm([3.0, 4.0])
        5.0
    """
    return math.sqrt(sum(norm * norm for norm in norms))


def depth_flag(gradient_norms: Sequence[float], *, factor: float = 100.0) -> str:
    """What the gradient does on its way from the last block to the first.

    Args:
        gradient_norms: One a block, the block nearest to the input first.
        factor: How much weaker (or stronger) the first block's may be than the last's. Default 100.

    Returns:
        ``"not finite"``, ``"none"`` (all are 0), ``"vanishing"`` (the first's is below the last's by more than the factor),
        ``"exploding"`` (above by more) or ``"ok"``.

    Example:
        >>> [depth_flag(norms) for norms in ([1e-4, 1e-2, 1.0], [500.0, 1.0], [0.3, 1.0], [0.0, 0.0], [float("nan"), 1.0])]
        ['vanishing', 'exploding', 'ok', 'none', 'not finite']
    """
    if not all(math.isfinite(norm) for norm in gradient_norms):
        return "not finite"
    first, last = gradient_norms[0], gradient_norms[-1]
    if not any(gradient_norms):
        return "none"
    if first * factor < last:
        return "vanishing"
    return "exploding" if first > last * factor else "ok"


def depth_report(
    groups: Mapping[str, Mapping[str, Sequence[int]]],
    gradients: Sequence[float],
    weights: Sequence[float],
    updates: Sequence[float] | None,
) -> dict[str, dict[str, object]]:
    """The norms of each block of each stack.

    Args:
        groups: What `depth_groups` says.
        gradients: Norm of each variable's gradient.
        weights: Norm of each variable.
        updates: Norm of what the last step added to each variable, or None where it is not known.

    Returns:
        ``{stack: {"blocks", "gradient", "weight", "update" (‖update‖ / ‖weight‖), "flag"}}``.

    Example:
        >>> groups = {"a": {"a_0": [0], "a_1": [1, 2]}}
        >>> depth_report(groups, [1.0, 3.0, 4.0], [1.0, 3.0, 4.0], [0.1, 0.0, 0.5])["a"]["update"]
        [0.1, 0.1]
    """
    report: dict[str, dict[str, object]] = {}
    for stack, blocks in groups.items():

        def norms(values: Sequence[float], blocks: Mapping[str, Sequence[int]] = blocks) -> list[float]:
            return [joint_norm([values[place] for place in places]) for places in blocks.values()]

        gradient, weight = norms(gradients), norms(weights)
        update = None if updates is None else [a / b if b else 0.0 for a, b in zip(norms(updates), weight, strict=True)]
        report[stack] = {
            "blocks": [block.removeprefix(stack).strip("_") or "0" for block in blocks],
            "gradient": gradient,
            "weight": weight,
            "update": update,
            "flag": depth_flag(gradient),
        }
    return report
