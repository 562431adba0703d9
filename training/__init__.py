"""Data out, offline: point-in-time training sets from the offline store."""

from training.build import build_training_set, rebuild_training_set, training_set
from training.dataset import TrainingSet

__all__ = ["TrainingSet", "build_training_set", "rebuild_training_set", "training_set"]
