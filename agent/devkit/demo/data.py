"""The demo's data: the 569 biopsies of the Wisconsin breast-cancer study that ship with scikit-learn, split over hospitals.

A dataset is CSV with a header; its last column `target` is 1 for benign. A dataset for prediction has no targets.
"""

import csv
import io
import random
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from agent.domain.orders import DatasetRef
from agent.trust.dataset_header import Use

SEED = 569
TARGET = "target"


@dataclass(frozen=True, slots=True)
class Split:
    """A part of the patients: at which hospital, for which use, how many."""

    name: str
    hospital: str
    use: Use
    rows: int

    @property
    def ref(self) -> DatasetRef:
        """The dataset's name in orders: the same in every run."""
        return DatasetRef(str(uuid5(NAMESPACE_URL, f"dc-compute-demo/{self.name}")), "1")


SPLITS = (
    Split("A-spring", "A", "train", 30),
    Split("B", "B", "train", 24),
    Split("C", "C", "train", 20),
    Split("A-autumn", "A", "train", 26),
    Split("C-held-out", "C", "test", 429),
    Split("B-new-patients", "B", "predict", 40),
)


def write_splits(folder: Path) -> dict[str, Path]:
    """A plain file for each split, and `targets` of the new patients for whoever marks the predictions."""
    header, rows = _biopsies()
    random.Random(SEED).shuffle(rows)  # noqa: S311 - a split, no secret
    files: dict[str, Path] = {}
    folder.mkdir(mode=0o700, exist_ok=True)
    for split in SPLITS:
        part, rows = rows[: split.rows], rows[split.rows :]
        files[split.name] = folder / f"{split.name}.csv"
        if split.use == "predict":
            (folder / "targets").write_text("\n".join(row[-1] for row in part))
            _write(files[split.name], header[:-1], [row[:-1] for row in part])
        else:
            _write(files[split.name], header, part)
    files["targets"] = folder / "targets"
    return files


def _biopsies() -> tuple[list[str], list[list[str]]]:
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    header = [name.replace(" ", "_") for name in bunch.feature_names] + [TARGET]
    rows = [
        [*map(repr, map(float, row)), str(int(target))]
        for row, target in zip(bunch.data, bunch.target, strict=True)
    ]
    return header, rows


def _write(path: Path, header: list[str], rows: list[list[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    path.write_text(text.getvalue())
