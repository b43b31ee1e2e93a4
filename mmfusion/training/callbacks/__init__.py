"""What happens beside the steps of a training."""

from mmfusion.training.callbacks.checkpointing import Checkpointing
from mmfusion.training.callbacks.diagnostics import Diagnostics
from mmfusion.training.callbacks.json_lines_log import JsonLinesLog
from mmfusion.training.callbacks.loss_recovery import LossRecovery
from mmfusion.training.callbacks.progress_bar import ProgressBar
from mmfusion.training.callbacks.validation import Validation, save_model

__all__ = ["Checkpointing", "Diagnostics", "JsonLinesLog", "LossRecovery", "ProgressBar", "Validation", "save_model"]
