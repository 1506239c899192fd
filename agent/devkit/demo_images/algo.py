"""Guest program of the demo: a linear classifier that goes on learning where the host before it stopped.

    algo.py -V /data -T train|predict

train    reads train/<dataset id> (CSV with a header, last column `target`), goes on from model/model.json, writes it again
predict  reads test/<dataset id> (the same without `target`), writes test/pred/<dataset id>, a probability a line

Features are standardised on the way: mean and variance are part of the model and grow with every host.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from sklearn.linear_model import SGDClassifier
from sklearn.preprocessing import StandardScaler

CLASSES = np.array([0, 1])
PASSES = 20


def cage() -> None:
    """Say what the kernel tells of this process: the operator's log shows how it was caged."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    for name in ("Seccomp", "NoNewPrivs", "CapBnd", "CapEff"):
        print(f"cage: {name} {status[name].strip()}")
    interfaces = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    print(f"cage: interfaces {' '.join(interfaces)}")
    print(f"cage: uid_map {' '.join(Path('/proc/self/uid_map').read_text().split())}", flush=True)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features (patients by columns) and targets, of which a file for prediction has none."""
    with path.open() as file:
        header, *rows = csv.reader(file)
    table = np.array(rows, dtype=float).reshape(len(rows), len(header))
    count = len(header) - (header[-1] == "target")
    return table[:, :count], table[:, count:].ravel().astype(int)


def load(path: Path) -> tuple[StandardScaler, SGDClassifier]:
    """The model as the host before left it, or a new one."""
    scaler = StandardScaler()
    classifier = SGDClassifier(loss="log_loss", random_state=0, alpha=1e-3, learning_rate="adaptive", eta0=0.05)
    if path.exists():
        told = json.loads(path.read_text())
        scaler.mean_, scaler.var_, scaler.scale_ = (np.array(told[name]) for name in ("mean", "var", "scale"))
        scaler.n_samples_seen_ = np.int64(told["seen"])
        classifier.coef_, classifier.intercept_ = np.array(told["coef"]), np.array(told["intercept"])
        classifier.classes_, classifier.t_ = CLASSES, told["t"]
    return scaler, classifier


def save(path: Path, scaler: StandardScaler, classifier: SGDClassifier) -> None:
    """The model as plain numbers: nobody has to unpickle what a stranger left."""
    told = {
        "mean": scaler.mean_.tolist(),
        "var": scaler.var_.tolist(),
        "scale": scaler.scale_.tolist(),
        "seen": int(scaler.n_samples_seen_),
        "coef": classifier.coef_.tolist(),
        "intercept": classifier.intercept_.tolist(),
        "t": float(classifier.t_),
    }
    path.write_text(json.dumps(told))


def train(
    scaler: StandardScaler, classifier: SGDClassifier, features: np.ndarray, targets: np.ndarray, *, is_loud: bool = True
) -> None:
    """A few passes over one host's patients."""
    scaler.partial_fit(features)
    standard = scaler.transform(features)
    order = np.random.default_rng(0)
    for number in range(PASSES):
        shuffled = order.permutation(len(targets))
        classifier.partial_fit(standard[shuffled], targets[shuffled], classes=CLASSES)
        if is_loud:
            print(f"progress: {(number + 1) / PASSES:.2f} pass {number + 1} of {PASSES}", flush=True)


def probabilities(scaler: StandardScaler, classifier: SGDClassifier, features: np.ndarray) -> np.ndarray:
    """The probability of class 1 for each patient."""
    return np.asarray(classifier.predict_proba(scaler.transform(features))[:, 1])


def main() -> None:
    """One run of the container."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-V", dest="volume", type=Path, required=True)
    parser.add_argument("-T", dest="task", choices=("train", "predict"), required=True)
    told = parser.parse_args()
    cage()
    model = told.volume / "model" / "model.json"
    scaler, classifier = load(model)
    if told.task == "train":
        for path in sorted(path for path in (told.volume / "train").iterdir() if path.is_file()):
            train(scaler, classifier, *read(path))
        save(model, scaler, classifier)
        return
    for path in sorted(path for path in (told.volume / "test").iterdir() if path.is_file()):
        features, _ = read(path)
        answers = probabilities(scaler, classifier, features)
        (path.parent / "pred" / path.name).write_text("".join(f"{answer:.6f}\n" for answer in answers))


if __name__ == "__main__":
    main()
