"""The demo's problem: who has a malignant tumour? It alone knows the targets and the metric.

    problem.py -T detarget -i /hidden_data -s /submission_data    copies the test data without its column `target`
    problem.py -T perf -i /hidden_data -s /submission_data        scores the predictions: ROC AUC, larger is better

Data and predictions are in the form that `algo.py` tells. Accuracy goes to stdout, for people.
"""

import argparse
import csv
import json
import math
import sys
from pathlib import Path


def main() -> None:
    """What the container contract asks of a problem."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-T", dest="task", choices=("detarget", "perf"), required=True)
    parser.add_argument("-i", dest="hidden", type=Path, required=True)
    parser.add_argument("-s", dest="submission", type=Path, required=True)
    options = parser.parse_args()
    if options.task == "detarget":
        detarget(options.hidden / "test", options.submission / "test")
    else:
        performance(options.hidden, options.submission)


def detarget(hidden: Path, shown: Path) -> None:
    """Copy each dataset without its targets."""
    files = data_files(hidden)
    for number, path in enumerate(files, 1):
        header, *rows = read(path)
        if header[-1:] != ["target"]:
            sys.exit(f"{path.name} has no column `target`")
        with (shown / path.name).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header[:-1], *(row[:-1] for row in rows)])
        print(f"progress: {number / len(files):.2f} {path.name}", flush=True)


def performance(hidden: Path, submission: Path) -> None:
    """Leave performance.json: the mean ROC AUC over the test datasets, and each one's."""
    from sklearn.metrics import accuracy_score, roc_auc_score

    test: dict[str, float] = {}
    for path in data_files(hidden / "test"):
        targets = [int(row[-1]) for row in read(path)[1:]]
        scores = predictions(submission / "test" / "pred" / path.name, len(targets))
        test[path.name] = float(roc_auc_score(targets, scores))
        accuracy = accuracy_score(targets, [score >= 0.5 for score in scores])
        print(f"{path.name}: ROC AUC {test[path.name]:.4f}, accuracy {accuracy:.4f}", flush=True)
    if not test:
        sys.exit("there is no test data to score on")
    result = {"perf": sum(test.values()) / len(test), "train_perf": {}, "test_perf": test}
    (hidden / "perf" / "performance.json").write_text(json.dumps(result))


def predictions(path: Path, count: int) -> list[float]:
    """The scores in a prediction file, which a stranger wrote."""
    if not path.is_file():
        sys.exit(f"there is no prediction for {path.name}")
    scores = [float(row[0]) for row in read(path)[1:]]
    if len(scores) != count or not all(map(math.isfinite, scores)):
        sys.exit(f"the prediction for {path.name} is not {count} finite numbers")
    return scores


def data_files(folder: Path) -> list[Path]:
    """The datasets of a folder: its regular files."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def read(path: Path) -> list[list[str]]:
    """Header and rows."""
    with path.open(newline="") as file:
        return list(csv.reader(file))


if __name__ == "__main__":
    main()
