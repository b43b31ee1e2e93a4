"""Groups of beams that differ."""

from __future__ import annotations

from keras import KerasTensor, ops

from mmfusion.decoding._banks import Candidates, going_on, likeliest, pick, stacked
from mmfusion.decoding.token_rules import marked


class DiverseBanks:
    """Groups, each of which avoids what those before it have just chosen.

    Args:
        count: G.
        penalty: By how much a log-probability falls for each text of an earlier group that went on with the same token.
    """

    final: int | None = None

    def __init__(self, count: int, penalty: float) -> None:
        self.count = count
        self.penalty = penalty

    def choose(self, continued: KerasTensor, end_id: int) -> Candidates:
        """Group by group the 2K likeliest, after the penalty."""
        beams, vocabulary = continued.shape[2:]
        found, taken = [], ops.zeros_like(continued[:, 0, 0])
        for group in range(self.count):
            own = continued[:, group]
            chosen = likeliest(own - self.penalty * taken[:, None], own, first=group * beams)
            found.append(chosen)
            live, keep = going_on(chosen, end_id, beams)
            taken = taken + ops.cast(marked(pick(chosen.token, keep), live > float("-inf"), vocabulary), taken.dtype)
        return stacked(found)
