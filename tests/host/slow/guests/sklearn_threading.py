"""scikit-learn on threads: joblib's threading backend, and the OpenMP loops of its own code."""

from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.cluster import KMeans
from sklearn.ensemble import BaggingClassifier, HistGradientBoostingClassifier
from sklearn.metrics import accuracy_score
from sklearn.svm import SVC
from threadpoolctl import threadpool_info

LEAST = 0.94


def train(rows: Any, targets: Any, model: Path) -> None:
    """Bagged support vectors, boosted trees for what they are unsure of, and clusters for the OpenMP in KMeans."""
    assert {pool["user_api"] for pool in threadpool_info()} >= {"openmp", "blas"}
    with joblib.parallel_config(backend="threading", n_jobs=2):
        bag = BaggingClassifier(SVC(gamma="scale"), n_estimators=8, random_state=7, n_jobs=2).fit(
            rows, targets
        )
    boosted = HistGradientBoostingClassifier(max_iter=20, random_state=7).fit(rows, targets)
    clusters = KMeans(n_clusters=10, n_init=2, random_state=7).fit(rows)
    assert len(np.unique(clusters.labels_)) == 10
    joblib.dump((bag, boosted), model / "model.joblib")


def predict(rows: Any, model: Path) -> Any:
    """The more likely class by both together."""
    bag, boosted = joblib.load(model / "model.joblib")
    with joblib.parallel_config(backend="threading", n_jobs=2):
        return np.argmax(bag.predict_proba(rows) + boosted.predict_proba(rows), axis=1)


def score(targets: Any, predicted: Any) -> float:
    """The share of right ones."""
    return float(accuracy_score(targets, predicted))
