"""What the features are worth: a model of late arrivals with the warehouse's features alone, and with the streams beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from tally.columns import Column
from tally.dtypes import VARIABLE_WIDTH
from tally.plan import Plan, Service

Floats = NDArray[np.float64]


def numeric_features(plan: Plan, service: Service) -> tuple[list[str], list[str]]:
    """(features that need no stream, all features): names of numbers and booleans, in the service's order."""
    streamed: set[str] = set()
    for use in service.views:
        if plan.view(use.view).stream:
            streamed |= {answer for _, answer in use.features}
    stream_views = {use.name for use in service.views if plan.view(use.view).stream}
    for function_use in service.functions:
        function = plan.function(function_use.function)
        if any(needed.view in stream_views for needed in function.inputs):
            streamed |= {answer for _, answer in function_use.features}
    usable = [f.name for f in service.outputs if f.dtype not in VARIABLE_WIDTH and f.dtype != "UnixTimestamp"]
    return [name for name in usable if name not in streamed], usable


def matrix(columns: Mapping[str, Column], names: Sequence[str]) -> Floats:
    """The named features as float64, NaN where null. Shape (rows, len(names))."""
    out = np.empty((len(columns[names[0]]), len(names)), np.float64)
    for position, name in enumerate(names):
        out[:, position] = np.where(columns[name].valid, columns[name].values, np.nan)
    return out


def auc(train: Floats, train_late: NDArray[np.bool_], test: Floats, test_late: NDArray[np.bool_]) -> float:
    """Area under the ROC curve, on `test`, of gradient-boosted trees fitted on `train`. The seed is fixed."""
    model = HistGradientBoostingClassifier(max_iter=150, learning_rate=0.1, random_state=0)
    model.fit(train, train_late)
    return float(roc_auc_score(test_late, model.predict_proba(test)[:, 1]))
