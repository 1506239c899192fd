"""The guest of the workload tests: one entry point for all, as the container contract calls it.

    main.py -V /data -T train|predict                              the workload that the dataset's name says
    main.py -T detarget|perf -i /hidden_data -s /submission_data   the problem's side: problem.py

A dataset is CSV with a header and, where targets are known, a last column `target`. Training learns two rows of three, loads
what it saved, predicts the third ones and fails when that is worse than the workload's LEAST. Prediction: one number a line.
"""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """What the container contract asks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-V", dest="volume", type=Path)
    parser.add_argument("-T", dest="task", choices=("train", "predict", "detarget", "perf"), required=True)
    parser.add_argument("-i", dest="hidden", type=Path)
    parser.add_argument("-s", dest="submission", type=Path)
    told = parser.parse_args()
    if told.task in {"detarget", "perf"}:
        importlib.import_module("problem").main(told.task, told.hidden, told.submission)
    elif told.task == "train":
        train(told.volume / "train", told.volume / "model")
    else:
        predict(told.volume / "test", told.volume / "model")


def train(folder: Path, model: Path) -> None:
    """Train each dataset's workload and say how well it does on rows that it did not see."""
    for path in data_files(folder):
        workload = importlib.import_module(path.name)
        rows, targets = read(path)
        is_held_out = np.arange(len(rows)) % 3 == 2
        began = time.perf_counter()
        workload.train(rows[~is_held_out], targets[~is_held_out], model)
        train_s = time.perf_counter() - began
        predicted = workload.predict(rows[is_held_out], model)
        score = float(workload.score(targets[is_held_out], predicted))
        print(json.dumps({"workload": path.name, "score": score, "train_s": round(train_s, 3)}), flush=True)
        if score < workload.LEAST:
            sys.exit(f"{path.name} scores {score}, under {workload.LEAST}")


def predict(folder: Path, model: Path) -> None:
    """Predict every row of each dataset."""
    for path in data_files(folder):
        rows, _ = read(path)
        predicted = importlib.import_module(path.name).predict(rows, model)
        lines = [repr(float(value)) for value in predicted]
        (folder / "pred" / path.name).write_text("\n".join(lines) + "\n")
        print(json.dumps({"workload": path.name, "rows": len(lines)}), flush=True)


def data_files(folder: Path) -> list[Path]:
    """The datasets of a folder: its regular files."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def read(path: Path) -> tuple[Any, Any]:
    """(rows, targets) of a dataset; targets is None where the column is missing."""
    header, *lines = path.read_text().splitlines()
    table = np.array([line.split(",") for line in lines], dtype=float)
    if header.split(",")[-1] != "target":
        return table, None
    return table[:, :-1], table[:, -1].astype(int)


if __name__ == "__main__":
    main()
