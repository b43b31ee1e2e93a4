"""The process of one trial: ``python -m mmfusion.cli.trial_process FOLDER`` trains the folder's ``trial.yaml``."""

from __future__ import annotations

import ctypes
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Makes the kernel (of Linux) end this process when its parent ends.

    A killed search would leave its trial running; started again, it would train the same folder a second time beside it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    from mmfusion.cli.main import run

    end_with_parent()
    folder = Path(sys.argv[1])
    sys.argv[1:] = ["train", str(folder / "trial.yaml"), "--run", str(folder)]
    run()
