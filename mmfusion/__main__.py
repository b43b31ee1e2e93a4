"""``python -m mmfusion`` is the command ``mmfusion``."""

from mmfusion.cli.main import run

if __name__ == "__main__":
    run()
