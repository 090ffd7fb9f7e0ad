"""What a training run may be told, for every service that checks it."""

from shortstack.training.settings import NOT_OFFERED, Schedule, TrainConfig

__all__ = ["NOT_OFFERED", "Schedule", "TrainConfig"]
