"""pandas over Arrow: CSV in both engines, grouping, joins, Parquet written and read back memory-mapped."""

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

LEAST = 0.9
BINS = 8


def train(rows: Any, targets: Any, model: Path) -> None:
    """Naive Bayes over binned columns: a long table of (column, bin) -> log odds, and the edges of the bins."""
    frame = pd.DataFrame(rows, columns=[f"c{at}" for at in range(rows.shape[1])]).assign(target=targets)
    text = frame.to_csv(index=False)
    assert pd.read_csv(io.StringIO(text), engine="pyarrow").shape == frame.shape
    frame = pd.read_csv(io.StringIO(text))
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "rows.parquet"
        frame.to_parquet(kept, compression="zstd")
        again = pq.read_table(kept, memory_map=True).to_pandas()
    pd.testing.assert_frame_equal(frame, again)
    assert frame.rolling(5).mean().notna().any(axis=None)
    edges = frame.drop(columns="target").quantile(np.linspace(0, 1, BINS + 1)[1:-1])
    long = frame.melt(id_vars="target", var_name="column")
    long["bin"] = [
        int(np.searchsorted(edges[name], value))
        for name, value in zip(long["column"], long["value"], strict=True)
    ]
    counts = long.groupby(["column", "bin", "target"]).size().unstack("target", fill_value=0) + 1
    odds = np.log(counts[1] / counts[1].sum()) - np.log(counts[0] / counts[0].sum())
    odds.rename("odds").reset_index().to_parquet(model / "odds.parquet")
    edges.to_parquet(model / "edges.parquet")


def predict(rows: Any, model: Path) -> Any:
    """The sum of the log odds of each row."""
    edges = pd.read_parquet(model / "edges.parquet")
    odds = (
        pd.read_parquet(model / "odds.parquet")
        .pivot(index="column", columns="bin", values="odds")
        .fillna(0.0)
    )
    total = np.zeros(len(rows))
    for at, column in enumerate(edges.columns):
        total += odds.loc[column].to_numpy()[np.searchsorted(edges[column].to_numpy(), rows[:, at])]
    return total


def score(targets: Any, predicted: Any) -> float:
    """The share of right ones."""
    return float(np.mean((predicted > 0) == targets))
