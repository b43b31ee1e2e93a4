"""The process of one trial: ``python -m mmfusion.cli.trial_process FOLDER PARENT`` trains the folder's ``trial.yaml``."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Makes the kernel (of Linux) end this process when its parent ends.

    A killed search would leave its trial running; started again, it would train the same folder a second time beside it.

    Args:
        parent: The parent's process id: where it is gone already, this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


if __name__ == "__main__":
    from mmfusion.cli.main import run

    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    end_with_parent(parent)
    sys.argv[1:] = ["train", str(folder / "trial.yaml"), "--run", str(folder)]
    run()
