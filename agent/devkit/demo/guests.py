"""The demo's images, built here from the running interpreter, and the same algorithm on one hospital's own patients."""

from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from agent.devkit.images import program_image
from agent.domain.ids import Digest


@dataclass(frozen=True, slots=True)
class Image:
    """An image's archive and its digest."""

    name: str
    archive: Path
    digest: Digest


@dataclass(frozen=True, slots=True)
class DemoImages:
    """The problem, an honest algorithm, and one that opens a socket."""

    problem: Image
    algo: Image
    talkative: Image

    def __iter__(self) -> Iterator[Image]:
        return iter((self.problem, self.algo, self.talkative))


def demo_images(cache: Path) -> DemoImages:
    """The three images below `cache`; what is there already is used again."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    return DemoImages(
        problem=_image(cache, "problem", ["scikit-learn"]),
        algo=_image(cache, "algo", ["scikit-learn"]),
        talkative=_image(cache, "algo_socket"),
    )


def alone(train: Sequence[Path], test: Path) -> float:
    """The ROC AUC on `test` of the demo's own algorithm, trained on these files only, outside any container."""
    from sklearn.metrics import roc_auc_score

    from agent.devkit.demo_images import algo

    model: dict[str, Any] = {}
    for path in train:
        with redirect_stdout(StringIO()):  # it speaks to a log
            *_, model = algo.learn(model, *algo.read(path))
    rows, targets = algo.read(test)
    return float(roc_auc_score(targets, algo.probabilities(model, rows)))


def _image(cache: Path, name: str, distributions: Sequence[str] = ()) -> Image:
    archive = cache / f"{name}.oci.tar"
    return Image(name, archive, program_image(archive, name, cache, distributions=distributions))
