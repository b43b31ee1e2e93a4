"""Training: objectives, the loop under tf.distribute, schedules, checkpoints, callbacks."""

from mmfusion.training.adjustable_rate import AdjustableRate
from mmfusion.training.checkpoints import Checkpoints
from mmfusion.training.experiment import LoadedRun, load_run
from mmfusion.training.freezing import freeze
from mmfusion.training.momentum_teacher import MomentumTeacher
from mmfusion.training.optimization import build_optimizer
from mmfusion.training.run_folder import RunFolder
from mmfusion.training.strategy import build_strategy
from mmfusion.training.train import TrainResult, train
from mmfusion.training.trainer import Trainer

__all__ = [
    "AdjustableRate",
    "Checkpoints",
    "LoadedRun",
    "MomentumTeacher",
    "RunFolder",
    "TrainResult",
    "Trainer",
    "build_optimizer",
    "build_strategy",
    "freeze",
    "load_run",
    "train",
]
