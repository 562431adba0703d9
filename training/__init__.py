"""Data out, offline: point-in-time training sets from the offline store, and audits of what was served."""

from training.audit_results import Audit
from training.auditing import audit
from training.build import build_training_set, rebuild_training_set, training_set
from training.dataset import TrainingSet

__all__ = ["Audit", "TrainingSet", "audit", "build_training_set", "rebuild_training_set", "training_set"]
