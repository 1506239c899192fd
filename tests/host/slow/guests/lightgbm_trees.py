"""lightgbm: trees on two threads, its text format."""

from pathlib import Path
from typing import Any

import lightgbm
from sklearn.metrics import roc_auc_score

LEAST = 0.98
SETTINGS = {
    "objective": "binary",
    "num_threads": 2,
    "deterministic": True,
    "force_row_wise": True,
    "seed": 7,
    "verbose": -1,
}


def train(rows: Any, targets: Any, model: Path) -> None:
    """Trees on all rows."""
    booster = lightgbm.train(SETTINGS, lightgbm.Dataset(rows, targets), num_boost_round=60)
    booster.save_model(model / "model.txt")


def predict(rows: Any, model: Path) -> Any:
    """The chance of 1."""
    return lightgbm.Booster(model_file=model / "model.txt").predict(rows, num_threads=2)


def score(targets: Any, predicted: Any) -> float:
    """The area under the ROC curve."""
    return float(roc_auc_score(targets, predicted))
