"""Real workloads in the real cage, under the shipped profiles: they learn what they learn outside, and predict the same."""

import json
import shutil
from collections.abc import Iterator

import pytest

from agent.devkit.seccomp import FOLDER, profile, read_source
from agent.ports.runtime import Mount, RunKind
from tests.host.podman import Engine
from tests.host.runtimes import RUNTIMES
from tests.host.slow.cages import Cage, open_cage
from tests.host.slow.workloads import WORKLOADS, Outside, dataset, last_line, lay_out, need, outside

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(900)]  # the first one makes the image

SOURCE = read_source()
every_workload = pytest.mark.parametrize("workload", WORKLOADS)


@pytest.fixture(scope="module", params=RUNTIMES)
def cage(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Cage]:
    """The real cage of one runtime with the image of the workloads."""
    need("kernel")
    yield from open_cage(request.param, engine)


@pytest.fixture(scope="module")
def outsides() -> dict[str, Outside]:
    """What was seen outside so far, by workload; `seen_outside` fills it."""
    return {}


@pytest.fixture
def seen_outside(
    workload: str, outsides: dict[str, Outside], tmp_path_factory: pytest.TempPathFactory
) -> Outside:
    """The workload of this test, run once outside any container."""
    need(workload)
    if workload not in outsides:
        outsides[workload] = outside(workload, tmp_path_factory.mktemp(workload))
    return outsides[workload]


# ------------------------------------------------------------------ the same, inside and outside


@every_workload
def test_a_workload_does_in_the_cage_what_it_does_outside(
    cage: Cage, workload: str, seen_outside: Outside
) -> None:
    volume, pred = cage.fresh(workload), cage.fresh("pred")
    lay_out(volume, workload)

    trained = cage.train(volume)
    assert trained.cause is None, trained.log.decode()
    asked = cage.predict(volume, pred)
    assert asked.cause is None, asked.log.decode()

    there, here = seen_outside.trained.said, last_line(trained.log.decode())
    assert (here["workload"], here["score"]) == (workload, there["score"])
    assert (cage.harvest(pred) / workload).read_bytes() == seen_outside.predictions, asked.log.decode()


def test_a_problem_image_detargets_and_scores_with_processes_and_without_sockets(cage: Cage) -> None:
    workload = "sklearn_threading"
    hidden, submission = cage.fresh("hidden"), cage.fresh("submission")
    (hidden / "test").mkdir()
    (hidden / "test" / workload).write_bytes(dataset(WORKLOADS[workload], has_target=True))
    volume, pred, perf = cage.fresh(workload), cage.fresh("pred"), cage.fresh("perf")
    lay_out(volume, workload)
    secret = Mount(hidden / "test", "/hidden_data/test")
    words = "-i /hidden_data -s /submission_data"

    detargeted = cage.run(
        RunKind.PROBLEM,
        f"-T detarget {words}",
        secret,
        Mount(submission, "/submission_data/test", is_writable=True),
    )
    assert detargeted.cause is None, detargeted.log.decode()
    shutil.copyfile(cage.harvest(submission) / workload, volume / "test" / workload)
    assert b"target" not in (volume / "test" / workload).read_bytes().splitlines()[0]
    assert cage.train(volume).cause is None
    assert cage.predict(volume, pred).cause is None
    answers = cage.fresh("answers")
    (answers / "pred").mkdir()
    shutil.copyfile(cage.harvest(pred) / workload, answers / "pred" / workload)
    scored = cage.run(
        RunKind.PROBLEM,
        f"-T perf {words}",
        secret,
        Mount(answers, "/submission_data/test"),
        Mount(perf, "/hidden_data/perf", is_writable=True),
    )

    assert scored.cause is None, scored.log.decode()
    told = json.loads((cage.harvest(perf) / "performance.json").read_text())
    assert told["test_perf"] == {workload: told["perf"]}
    assert told["perf"] > 0.97


# ------------------------------------------------------------------ which system calls they make


def allowed(name: str) -> set[str]:
    return {
        call
        for rule in profile(SOURCE, name)["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW"
        for call in rule["names"]
    }


def calls_of(seen: Outside, workload: str, run: str) -> frozenset[str]:
    calls = getattr(seen, run).calls
    if calls is None:
        pytest.skip(f"what {workload} calls is watched with strace: run install.sh --deps")
    return frozenset(calls)


@every_workload
def test_training_makes_no_call_but_those_allowed_and_those_that_may_fail(
    workload: str, seen_outside: Outside
) -> None:
    calls = calls_of(seen_outside, workload, "trained")

    assert calls - allowed("train") <= set(SOURCE.may_fail)
    assert calls <= set((FOLDER / "seen.txt").read_text().split()), "add them to seccomp/seen.txt"


@every_workload
def test_prediction_calls_beyond_its_profile_only_what_it_can_do_without(
    workload: str, seen_outside: Outside
) -> None:
    # Outside, joblib makes a semaphore (link) when it is imported, counts cores by a child process, and starts workers.
    calls = calls_of(seen_outside, workload, "asked")

    assert calls - allowed("predict") <= set(SOURCE.may_fail) | {"link", "vfork", "wait4"}
