"""numpy and scipy: decompositions, a transform, a sparse solver, an optimiser, memory-mapped arrays."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import fft, linalg, optimize, sparse, stats
from scipy.sparse import linalg as sparse_linalg
from scipy.special import expit

LEAST = 0.93


def train(rows: Any, targets: Any, model: Path) -> None:
    """A logistic regression on whitened rows, kept as one array."""
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    with tempfile.NamedTemporaryFile() as file:
        white = np.memmap(file, dtype=float, mode="w+", shape=rows.shape)
        white[:] = (rows - mean) / spread
        white.flush()
        assert linalg.svdvals(white)[0] > 1
        assert np.allclose(fft.irfft(fft.rfft(white, axis=0), n=len(white), axis=0), white)
        kernel = sparse.csr_matrix(white.T @ white + np.eye(rows.shape[1]))
        assert sparse_linalg.eigsh(kernel, k=3)[0].min() > 0
        assert np.isfinite(sparse_linalg.spsolve(kernel.tocsc(), np.ones(rows.shape[1]))).all()
        assert stats.mannwhitneyu(white[targets == 0, 0], white[targets == 1, 0]).pvalue < 0.01

        def loss(weights: Any) -> tuple[float, Any]:
            chance = expit(white @ weights[:-1] + weights[-1])
            wrong = chance - targets
            value = -np.mean(targets * np.log(chance + 1e-12) + (1 - targets) * np.log(1 - chance + 1e-12))
            slope = np.append(white.T @ wrong, wrong.sum()) / len(targets)
            return float(value + 1e-3 * weights @ weights), slope + 2e-3 * weights

        found = optimize.minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B")
    np.save(model / "weights.npy", np.stack([found.x, np.append(mean, 0), np.append(spread, 1)]))


def predict(rows: Any, model: Path) -> Any:
    """The chance of 1."""
    weights, mean, spread = np.load(model / "weights.npy", mmap_mode="r")
    return expit((rows - mean[:-1]) / spread[:-1] @ weights[:-1] + weights[-1])


def score(targets: Any, predicted: Any) -> float:
    """The share of right ones."""
    return float(np.mean((predicted > 0.5) == targets))
