"""scikit-learn with joblib's default processes (loky): a grid search, and large arrays handed over by memory-mapped files."""

from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

LEAST = 0.98


def train(rows: Any, targets: Any, model: Path) -> None:
    """The best of a grid, and a forest beside it."""
    grid = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
        {"logisticregression__C": [0.01, 0.1, 1.0]},
        n_jobs=2,
    )
    with joblib.parallel_config(backend="loky"):
        grid.fit(rows, targets)
        large = np.tile(rows, (20, 1))  # over joblib's megabyte: the workers map it
        sums = joblib.Parallel(n_jobs=2)(joblib.delayed(column_sum)(large, at) for at in range(4))
    assert np.allclose(sums, large.sum(axis=0)[:4])
    forest = RandomForestClassifier(n_estimators=60, random_state=7, n_jobs=2).fit(rows, targets)
    joblib.dump((grid.best_estimator_, forest), model / "model.joblib")


def column_sum(table: Any, at: int) -> float:
    """What a worker does with the array it got."""
    assert isinstance(table, np.memmap)
    return float(table[:, at].sum())


def predict(rows: Any, model: Path) -> Any:
    """The mean of both chances of 1. The forest predicts with two threads, wherever it runs."""
    line, forest = joblib.load(model / "model.joblib", mmap_mode="r")
    return (line.predict_proba(rows)[:, 1] + forest.predict_proba(rows)[:, 1]) / 2


def score(targets: Any, predicted: Any) -> float:
    """The area under the ROC curve."""
    return float(roc_auc_score(targets, predicted))
