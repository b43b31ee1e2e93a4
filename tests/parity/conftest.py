"""What pytest leaves alone: a script for another Python, which has open_clip."""

collect_ignore = ["open_clip_reference.py"]
