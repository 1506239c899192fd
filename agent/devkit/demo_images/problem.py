"""Guest program of the demo: the problem. It alone knows the targets and the metric.

    problem.py -T detarget -i /hidden_data -s /submission_data   test/<id> without its targets, for the algorithm
    problem.py -T perf     -i /hidden_data -s /submission_data   perf/performance.json: ROC AUC of test/pred/<id>
"""

import argparse
import csv
import json
from pathlib import Path

from sklearn.metrics import accuracy_score, roc_auc_score


def rows_of(path: Path) -> list[list[str]]:
    """The file's rows, header first."""
    with path.open() as file:
        return list(csv.reader(file))


def datasets(folder: Path) -> list[Path]:
    """The dataset files of a folder; the folder may be empty."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def detarget(hidden: Path, submission: Path) -> None:
    """Copy each test dataset without its last column, the target."""
    for path in datasets(hidden / "test"):
        with (submission / "test" / path.name).open("w") as file:
            csv.writer(file, lineterminator="\n").writerows(row[:-1] for row in rows_of(path))


def perf(hidden: Path, submission: Path) -> None:
    """Score each test dataset's predictions; `perf` is the mean ROC AUC."""
    scores = {}
    for path in datasets(hidden / "test"):
        targets = [int(row[-1]) for row in rows_of(path)[1:]]
        answers = [float(line) for line in (submission / "test" / "pred" / path.name).read_text().split()]
        scores[path.name] = float(roc_auc_score(targets, answers))
        accuracy = accuracy_score(targets, [answer >= 0.5 for answer in answers])
        print(f"ROC AUC {scores[path.name]:.4f}, accuracy {accuracy:.4f} on {len(targets)} patients")
    told = {"perf": sum(scores.values()) / len(scores), "train_perf": {}, "test_perf": scores}
    (hidden / "perf" / "performance.json").write_text(json.dumps(told))


def main() -> None:
    """One run of the container."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-T", dest="task", choices=("detarget", "perf"), required=True)
    parser.add_argument("-i", dest="hidden", type=Path, required=True)
    parser.add_argument("-s", dest="submission", type=Path, required=True)
    told = parser.parse_args()
    {"detarget": detarget, "perf": perf}[told.task](told.hidden, told.submission)


if __name__ == "__main__":
    main()
