"""Orders lost, stolen, stuck or failed for good by what only passes; data that stay behind."""

import io
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from agent.domain.ids import digest_of
from agent.domain.jobs import JobEvent, JobState
from agent.domain.receipts import RECEIPT_TYPE
from agent.errors import AgentError, BadSeal, DigestMismatch, NotYours, OutsideError, RuntimeUnavailable
from agent.pipeline.intake import take_handoff
from agent.pipeline.resume import sweep
from agent.pipeline.workspace import folder_name
from agent.ports.broker import Queue
from agent.ports.https import Stream
from agent.ports.runtime import RunOutcome
from agent.ports.runtime_podman import PodmanRuntime
from agent.ports.storage_https_download import Download, Wanted
from agent.trust.envelope import sign_envelope
from tests.builders import NOW, handoff_of, key_of, payload_of, policy_text, sign_payload
from tests.pipeline.world import ALGO, LEASE, PROBLEM, SMALL, Tapped, World, once

BOTH = policy_text(orchestrators=[key_of("o1").keyid, key_of("o2").keyid], images=[ALGO, PROBLEM], rest=SMALL)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# ------------------------------------------------------------------ stolen


def test_an_orchestrator_that_signs_anothers_order_again_gets_nothing_of_it(world: World) -> None:
    """Promise 1, lying orchestrator: o2 takes the reports and the *result* of o1's order; o1 never hears of its end.

    An order's identity is the digest of its payload, which does not name its signer; whoever's envelope a host sees first
    is the one it keeps. Every orchestrator that holds a share is sent the whole order with the first share request,
    before the chain reaches its later hosts. o2 signs the same payload itself and posts it to the last host: "known" from
    then on, so when the real hand-off comes, reports and result of all places there go to o2. (If c does not admit o2,
    c's own later hand-offs still hold; if it does, as consortia will, nothing is noticed.)
    Mend: make the issuer a signed field of the order, checked in agent/trust/signed.py:27 `open_order` (payload's
    `orchestrator` == signer). Without a change of format: keep signer and envelope by *job*, as they arrived with it
    (agent/ports/ledger_sqlalchemy_writes.py:181 `put_order`, agent/pipeline/host.py:73 `context_of`).
    """
    for hospital in world:
        hospital.allows(BOTH)
    order = world.order(train=("a1", "b1"), test=("c2",))
    stolen = sign_envelope(order.order.payload_type, payload_of(order.envelope), key_of("o2"))
    world.post(order, world.a)

    with pytest.raises(NotYours):
        world.post(replace(order, envelope=stolen, signer=key_of("o2").keyid), world.c)
    world.settle()

    assert world.has_result(order), (
        f"told to o2: {sorted(world.orchestrators.results.get(key_of('o2').keyid, {}))}"
    )


# ------------------------------------------------------------------ failed for good by what only passes


def test_a_bell_that_cannot_be_rung_costs_no_attempt(world: World) -> None:
    """Promise 1 and 6: "a lost bell is harmless", but one that cannot be *written* fails the order.

    `_start` rings the report's bell after the job is RUNNING and before anything catches: OutsideError (queues.sqlite
    locked for 5 s, a full disk) leaves a running job without a worker. Each time is an attempt lost; the last one is a
    FAILED receipt.
    Mend: agent/pipeline/bells.py: let the three functions log OutsideError instead of raising it (or execute.py:83).
    """
    order = world.order(train=("a1",), test=(), max_attempts=1)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)

    def fail() -> None:
        raise OutsideError("the queues are locked")

    world.a.ports(broker=Tapped(world.a.broker, before=once("ring", fail)))
    with suppress(ExceptionGroup):  # a worker would log it
        world.a.work(Queue.LEARN_TASKS)
    world.pass_time(LEASE.total_seconds() + 1)
    world.settle()

    assert world.a.job(order, 0).state is JobState.DONE


def test_a_run_whose_end_nobody_knows_is_tried_again(world: World) -> None:
    """Promise 1: "killing any process at any instruction must cost at most the running attempt, never an order".

    When conmon is killed, Podman has no exit code: the outcome is `unknown`, a JobError, and the order FAILS with
    attempts left. It is the host's accident, not the guest's: a guest that ends gives a code.
    Mend: agent/ports/container_run.py `_wait`: raise RuntimeUnavailable when the code is None or -1 and the agent
    did not kill (or treat `unknown` as retried in agent/pipeline/run.py:170).
    """
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    ends = iter(["unknown"])

    class Lost:
        def __init__(self, run: Any) -> None:
            self._run = run

        def wait(self) -> RunOutcome:
            outcome: RunOutcome = self._run.wait()
            return replace(outcome, cause=next(ends, outcome.cause))

    class Runtime(Tapped):
        def _tapped_run(self, name: str, run: Any) -> Any:
            inner = super()._tapped_run(name, run)
            return _Wrapped(inner, Lost)

    world.a.ports(runtime=Runtime(world.a.runtime))
    world.settle()

    assert world.a.job(order, 0).state is JobState.DONE


class _Wrapped:
    def __init__(self, inner: Any, wrap: Any) -> None:
        self._inner, self._wrap = inner, wrap

    def __enter__(self) -> Any:
        return self._wrap(self._inner.__enter__())

    def __exit__(self, *about: Any) -> Any:
        return self._inner.__exit__(*about)


def test_a_container_that_died_before_it_was_looked_at_is_no_missing_cage() -> None:
    """Promise 1: killing any process costs the attempt, never the order. When the container's first process dies between
    `init` and the look at it (the kernel's OOM killer, a restart of the user's session), /proc/<pid> is gone:
    `cage-not-applied`, which is never retried: FAILED at attempt 1. The same for `/start` of a container that is gone,
    and for any 5xx of `create`.

    Mend: agent/ports/cage_check.py `read_back`: FileNotFoundError and ProcessLookupError are RuntimeUnavailable (nothing
    ran, so nothing is lost by another attempt); PermissionError stays CageNotApplied.
    """
    gone = subprocess.Popen(["true"])
    gone.wait()
    runtime = PodmanRuntime(Path("/nowhere"), Path("/nowhere"), Path("/nowhere"), instance="x")
    runtime._inside = SimpleNamespace(do=lambda _what, _path: {"text": "{}"})  # type: ignore[assignment]

    with pytest.raises(AgentError) as told:
        runtime._check(
            {"OCIConfigPath": "/nowhere", "State": {"Pid": gone.pid}},
            SimpleNamespace(cgroup={}),  # type: ignore[arg-type]
        )

    assert told.value.is_retried


def test_a_dataset_that_broke_on_its_way_is_fetched_again() -> None:
    """Promise 6, wrong retry class: a download of a *blob* that brings other bytes is DigestMismatch, retried; the same
    accident to a *dataset* is BadSeal, final, for the opener sees the broken chunk before the digest is judged: FAILED at
    attempt 1 of 3.

    Mend: agent/ports/storage_https_download.py `_write`: when the sink refuses, read the rest without it and raise
    DigestMismatch if the whole is not `wanted.digest` (then it was storage or the way); only else let the refusal
    through.
    """
    sealed = b"DCDATA1\n" + bytes(1000)

    class Broken:
        @contextmanager
        def stream(self, *_: object) -> Iterator[Stream]:
            yield Stream(200, {}, io.BytesIO(bytes([sealed[0] ^ 1]) + sealed[1:]).readinto)

    class Opening:
        def write(self, data: memoryview, /) -> int:
            raise BadSeal("this is no sealed dataset of version 1")

    wanted = Wanted("/v1/datasets/x/content", digest_of(sealed), len(sealed), "dataset x")
    download = Download(Broken(), None, wanted, Opening(), lambda _: None)  # type: ignore[arg-type]

    with pytest.raises(DigestMismatch):
        download.run()


def test_a_score_beyond_all_reckoning_is_refused_when_it_arrives(world: World) -> None:
    """Promise 5 and 6, lying peer: a receipt's score may be `1e9999999` (the pattern allows it). `mean_of` at the *last*
    agent raises decimal.Overflow, which is no AgentError: its container runs max_attempts times, each attempt crashes,
    and the honest agent signs a FAILED receipt with reason `unknown`.

    Mend: agent/domain/receipts.py:27 `Score` / `check_place`: refuse a score that `float` does not hold finite
    (ReceiptRefused).
    """
    order = world.order(train=("a1",), test=("b2", "c2"))
    world.post(order, world.a)
    world.a.work()
    (first,) = world.a.ledger.receipts(order.digest)
    honest = json.loads(payload_of(world.people.receipt(order, [first]).envelope))
    honest["predicate"]["score"] = "1e9999999"
    lie = sign_payload(RECEIPT_TYPE, json.dumps(honest).encode(), key_of("agent-b"))

    with suppress(AgentError):  # the best answer
        take_handoff(handoff_of(order.envelope, [first.envelope, lie]), world.b.keyid, world.c.host)

    world.c.work()  # raises what crashed


# ------------------------------------------------------------------ stuck


def test_a_place_that_nobody_knows_is_asked_for_about_once_a_minute(world: World) -> None:
    """Promise 6 (bounded retries): each sweep rings a RECEIVED job again, and each failure rings it once more after <= 60
    s: one more endless chain of bells for each minute, up to about one call to storage a second and job, for the life of
    the order. They are neither counted in the ledger nor told to anybody.

    Mend: agent/pipeline/advance.py:36: ring only while the rest is shorter than the sweep's minute (`if rest_s <
    LONGEST_REST_S`).
    """
    order = world.order(train=("a1",), test=())
    info = world.storages.datasets.pop(order.order.train_data[0])  # type: ignore[union-attr]
    world.post(order, world.a)
    asked: list[str] = []
    world.a.ports(storage=Tapped(world.a.host.ports.storage, before=asked.append))
    for _ in range(60):  # minutes
        asked.clear()
        for _ in range(60):
            world.pass_time(1)
            world.a.work(Queue.LEARNUPLETS)
        world.a.sweep()
        world.a.work(Queue.LEARNUPLETS)

    assert info.locations
    assert len(asked) <= 5


# ------------------------------------------------------------------ left behind


def test_plaintext_is_removed_though_the_engine_is_away(world: World) -> None:
    """Promise 4: "gone after it, also after a crash". The sweep asks the engine for leftover containers first; while
    Podman does not answer (its user's session ended, `system reset`), no folder with a dataset in clear is ever removed.
    One container that cannot be removed, or one folder, keeps all others too.

    Mend: agent/pipeline/resume.py:55 `_clean`: folders first, or in a `finally`; each leftover in its own try.
    """
    order = world.order(train=("a1", "b1"), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    job = world.a.ledger.start(world.a.job(order, 0), world.clock(), worker="dead", lease_until=NOW + LEASE)
    folder = world.a.workspaces / folder_name(job.id, job.attempt)
    folder.mkdir(mode=0o700)
    (folder / "dataset.partial").write_text("plaintext")
    world.a.ledger.move(job, JobEvent.RETRY, world.clock())  # given up: nobody goes on with what lies there
    world.a.runtime.is_down = True
    world.pass_time(LEASE.total_seconds() + 1)

    with suppress(RuntimeUnavailable):
        sweep(world.a.host)

    assert not folder.exists()
