"""xgboost: histogram trees on two threads, its scikit-learn face in a cross-validation on processes, its own file format."""

from pathlib import Path
from typing import Any

import xgboost
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_score

LEAST = 0.98
SETTINGS = {"objective": "binary:logistic", "tree_method": "hist", "max_depth": 3, "seed": 7, "nthread": 2}


def train(rows: Any, targets: Any, model: Path) -> None:
    """Trees on all rows."""
    booster = xgboost.train(SETTINGS, xgboost.DMatrix(rows, targets), num_boost_round=80)
    classifier = xgboost.XGBClassifier(n_estimators=10, max_depth=2, n_jobs=1, random_state=7)
    assert cross_val_score(classifier, rows, targets, cv=3, n_jobs=2).mean() > 0.9
    booster.save_model(model / "model.ubj")


def predict(rows: Any, model: Path) -> Any:
    """The chance of 1."""
    booster = xgboost.Booster(SETTINGS, model_file=model / "model.ubj")
    return booster.predict(xgboost.DMatrix(rows))


def score(targets: Any, predicted: Any) -> float:
    """The area under the ROC curve."""
    return float(roc_auc_score(targets, predicted))
