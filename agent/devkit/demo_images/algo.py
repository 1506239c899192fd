"""The demo's algorithm: a linear classifier that learns one hospital after the other, standardising on the way.

    algo.py -V /data -T train      learns every file in /data/train, on top of the model it finds in /data/model
    algo.py -V /data -T predict    scores every file in /data/test into /data/test/pred

Data: CSV with a header; a last column named `target` (0 or 1) where targets are known. Prediction: CSV, one column `score`,
the probability of 1 for each row. Model: `model.npz`, plain arrays; no pickle. The same inputs give the same model bytes.
"""

import argparse
import csv
import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

EPOCHS = 20
SEED = 7
FIELDS = ("coef", "intercept", "steps", "mean", "var", "seen")


def main() -> None:
    """What the container contract asks of an algorithm."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-V", dest="volume", type=Path, required=True)
    parser.add_argument("-T", dest="task", choices=("train", "predict"), required=True)
    options = parser.parse_args()
    cage()
    if options.task == "train":
        train(options.volume)
    predict(options.volume / "test", options.volume / "model")


def cage() -> None:
    """Say what the kernel tells of this process: the operator's log shows how it was caged."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    for name in ("Seccomp", "NoNewPrivs", "CapBnd", "CapEff"):
        print(f"cage: {name} {status[name].strip()}")
    interfaces = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    print(f"cage: interfaces {' '.join(interfaces)}")
    print(f"cage: uid_map {' '.join(Path('/proc/self/uid_map').read_text().split())}", flush=True)


def train(volume: Path) -> None:
    """Learn each file; leave the model, and what it now says of the data it learnt."""
    files = data_files(volume / "train")
    model = load(volume / "model")
    for number, path in enumerate(files, 1):
        rows, targets = read(path)
        if targets is None:
            sys.exit(f"{path.name} has no column `target`")
        *_, model = learn(model, rows, targets)
        print(f"progress: {number / len(files):.2f} learnt {path.name}", flush=True)
    if model:
        save(volume / "model", model)
    predict(volume / "train", volume / "model")


def learn(model: dict[str, Any], rows: Any, targets: Any) -> Iterator[dict[str, Any]]:
    """The model after each epoch over these rows, going on from `model` where there is one."""
    from sklearn.linear_model import SGDClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    # Steps get smaller over the whole chain (`t_` travels with the model): the last host does not undo the first.
    classifier = SGDClassifier(
        loss="log_loss", alpha=1e-3, learning_rate="invscaling", eta0=0.1, random_state=SEED
    )
    if model:
        scaler.mean_, scaler.var_, scaler.n_samples_seen_ = model["mean"], model["var"], model["seen"]
        scaler.scale_, scaler.n_features_in_ = np.sqrt(model["var"]), len(model["mean"])
        classifier.classes_ = np.array([0, 1])
        classifier.coef_, classifier.intercept_ = model["coef"].copy(), model["intercept"].copy()
        classifier.t_, classifier.n_features_in_ = float(model["steps"]), model["coef"].shape[1]
    scaler.partial_fit(rows)
    standardised = scaler.transform(rows)
    for epoch in range(1, EPOCHS + 1):
        classifier.partial_fit(standardised, targets, classes=[0, 1])
        print(f"epoch {epoch}: accuracy {classifier.score(standardised, targets):.4f}", flush=True)
        yield {
            "coef": classifier.coef_.copy(),
            "intercept": classifier.intercept_.copy(),
            "steps": np.array(classifier.t_),
            "mean": scaler.mean_,
            "var": scaler.var_,
            "seen": np.array(scaler.n_samples_seen_),
        }


def predict(folder: Path, model_folder: Path) -> None:
    """Score each file of the folder into its `pred`."""
    files = data_files(folder)
    model = load(model_folder)
    if files and not model:
        sys.exit("there is no model yet")
    for number, path in enumerate(files, 1):
        rows, _ = read(path)
        scores = probabilities(model, rows)
        lines = ["score", *(repr(float(score)) for score in scores)]
        (folder / "pred" / path.name).write_text("\n".join(lines) + "\n")
        print(f"progress: {number / len(files):.2f} scored {path.name}", flush=True)


def probabilities(model: dict[str, Any], rows: Any) -> Any:
    """The probability of 1 for each row."""
    spread = np.where(model["var"] > 0, np.sqrt(model["var"]), 1.0)
    logits = (rows - model["mean"]) / spread @ model["coef"][0] + model["intercept"][0]
    return 1 / (1 + np.exp(-np.clip(logits, -30, 30)))


def data_files(folder: Path) -> list[Path]:
    """The datasets of a folder: its regular files."""
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def read(path: Path) -> tuple[Any, Any]:
    """(rows, targets) of a dataset; targets is None where the column is missing."""
    with path.open(newline="") as file:
        header, *lines = csv.reader(file)
    table = np.array(lines, dtype=float)
    if header[-1] != "target":
        return table, None
    return table[:, :-1], table[:, -1].astype(int)


def load(folder: Path) -> dict[str, Any]:
    """The arrays of a model, empty when there is none yet."""
    path = folder / "model.npz"
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in FIELDS}


def save(folder: Path, model: dict[str, Any]) -> None:
    """Write the arrays in order and without times, as numpy.savez would not."""
    with zipfile.ZipFile(folder / "model.npz", "w") as archive:
        for name in FIELDS:
            content = io.BytesIO()
            np.save(content, model[name], allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())


if __name__ == "__main__":
    main()
