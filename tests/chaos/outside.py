"""What can be seen of a run from outside: orchestrators' books, storages' shelves, what passed the proxies, the hosts."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.devkit.podman_service import checkout_folders
from agent.domain.ids import Digest, KeyId, OrderId, digest_from_hex
from agent.domain.orders import DatasetRef
from agent.domain.receipts import MAX_RECEIPT_BYTES, parse_receipt
from agent.domain.reports import ReportState, envelope_bytes, parse_report, parse_result
from agent.trust.envelope import parse_envelope
from tests.chain.inside import search
from tests.chain.test_canary import forms
from tests.chaos.desk import Desk
from tests.chaos.plan import HOSPITALS
from tests.chaos.processes import guests
from tests.chaos.stage import Stage, workspaces
from tests.chaos.town import Town
from tests.checker import Issued, Seen, Taken, Told, ToldResult, Violation

# What may cost an attempt: the engine or a container gone wrong, a full disk, bytes that are not those of their name, a
# worker that died between the container's making and its begin. Never a worker's death while it runs, never the network.
SPENT_BY = frozenset(
    {"unknown", "runtime-unavailable", "no-space", "cage-not-made", "container-lost", "digest-mismatch"}
)


def look(stage: Stage, desk: Desk, may_fail: frozenset[str], excused: dict[str, frozenset[str]]) -> Seen:
    """Everything but what lies on the hosts: see `left`."""
    passed = tuple(_passed(stage))
    return Seen(
        orders=[_issued(one, passed, stage, may_fail, excused) for one in _named(desk)],
        reports=tuple(_reports(stage)),
        results=tuple(_results(stage)),
        handoffs=[
            Taken(Digest(line["order"]), line["position"], _key(stage, line["target"]), line["last_receipt"])
            for line in passed
            if line["path"] == "/v1/handoffs" and "order" in line
        ],
        blobs={hospital.storage.key.keyid: set(_blobs(stage, hospital.name)) for hospital in stage.consortium.hospitals},
        alarms=[f"{alarm.what} ({alarm.order_id}, {alarm.agent[:8]})" for n in range(len(stage.consortium.orchestrators))
                for alarm in stage.consortium.book(n).alarms()],
        locate=lambda ref: _holders(stage, desk.town, ref),
    )  # fmt: skip


def left(stage: Stage) -> Iterator[str]:
    """What hosts still have of work that is over."""
    yield from guests()
    for hospital in HOSPITALS:
        for name in workspaces(stage.work(hospital)):
            yield f"{hospital}: workspace {name}"
        spool = stage.data(hospital) / "spool"
        for path in (one for one in spool.rglob("*") if one.suffix != ".lock"):
            yield f"{hospital}: spooled {path.relative_to(spool)}"
    for where in _mounts(stage):
        yield f"mounted: {where}"


def secrets_left(stage: Stage, canary: bytes, since_s: float) -> Iterator[str]:
    """Files on disks that hold the canary of the datasets: all that the run wrote but images as they are unpacked."""
    needles = {"the data's canary": [form.hex() for form in forms(canary)]}
    folders = [stage.folder / "logs", checkout_folders()[1].parent, *(stage.folder / "t").iterdir()]
    for hospital in HOSPITALS:
        folders.remove(stage.consortium.hospital(hospital).agent.folder)
        folders += [path for path in stage.data(hospital).iterdir() if path.name not in {"roots", "selftest"}]
    for folder in folders:
        told = search({"search": str(folder), "needles": needles, "since": since_s, "anywhere": True})
        for path, name in told["found"]:
            yield f"{name} lies in {path}"


def crashes(stage: Stage) -> Iterator[str]:
    """What agents' logs say of exceptions that nobody foresaw: who, which event, the last line; each once."""
    told = set()
    for service in stage.services.values():
        for line in service.log.read_text(errors="replace").splitlines():
            if '.crashed"' in line:
                event = json.loads(line)
                told.add(f"{service.name}: {event['event']}: {event['exception'].splitlines()[-1][:200]}")
    yield from sorted(told)


def attempts_spent(stage: Stage, excused: Mapping[str, frozenset[str]]) -> Iterator[Violation]:
    """Attempts that were counted though nothing was wrong with a container, an engine or a disk."""
    for n in range(len(stage.consortium.orchestrators)):
        for row in stage.consortium.book(n).database.rows("SELECT order_id, body FROM reports"):
            told = parse_report(row["body"])
            words = SPENT_BY | excused.get(row["order_id"], frozenset())
            if told.state is ReportState.ATTEMPT and not any(word in (told.reason or "") for word in words):
                yield Violation("attempt-spent", row["order_id"], f"at {told.position}: {told.reason}")


def _named(desk: Desk) -> list[tuple[str, Issued]]:
    return list(zip(list(desk.sent), desk.issued(), strict=False))


def _issued(
    named: tuple[str, Issued],
    passed: tuple[dict[str, Any], ...],
    stage: Stage,
    may_fail: frozenset[str],
    excused: dict[str, frozenset[str]],
) -> Issued:
    """The order with those too who took it though their answer was lost."""
    order_id, issued = named
    digests = {
        row["digest"]
        for n in range(len(stage.consortium.orchestrators))
        if (row := stage.consortium.book(n).database.row("SELECT digest FROM orders WHERE id = ?", order_id))
    }
    took = {
        _key(stage, str(line["target"]))
        for line in passed
        if line["path"] in {"/v1/learnuplets", "/v1/preduplets"} and line.get("order") in digests
    }
    return replace(
        issued,
        accepted_by=issued.accepted_by | took,
        may_fail=may_fail | excused.get(order_id, frozenset()),
    )


def _passed(stage: Stage) -> Iterator[dict[str, Any]]:
    """What passed the proxies, oldest first."""
    for file in sorted((stage.folder / "logs").glob("seen-*.jsonl")):
        for line in file.read_text().splitlines():
            yield json.loads(line)


def _reports(stage: Stage) -> Iterator[Told]:
    for n, party in enumerate(stage.consortium.orchestrators):
        for row in stage.consortium.book(n).database.rows("SELECT * FROM reports ORDER BY rowid"):
            place = (OrderId(row["order_id"]), row["position"], KeyId(row["reporter"]))
            yield Told(party.key.keyid, *place, row["n"], row["body"])


def _results(stage: Stage) -> Iterator[ToldResult]:
    """The book does not keep who told a result: the signer of its last receipt may."""
    for n, party in enumerate(stage.consortium.orchestrators):
        for row in stage.consortium.book(n).database.rows("SELECT * FROM results"):
            last = envelope_bytes(parse_result(row["body"]).receipts[-1])
            reporter = parse_receipt(parse_envelope(last, limit_bytes=MAX_RECEIPT_BYTES).payload).agent
            yield ToldResult(party.key.keyid, OrderId(row["order_id"]), reporter, row["body"])


def _blobs(stage: Stage, hospital: str) -> Iterator[Digest]:
    """Digests of the files that lie at this storage."""
    for path in (stage.consortium.hospital(hospital).storage.folder / "memory" / "files").iterdir():
        yield digest_from_hex(path.name)


def _holders(stage: Stage, town: Town, ref: DatasetRef) -> frozenset[KeyId]:
    """Who holds a dataset, as the town gave it out."""
    names = {name for (_, name, _), known in town.refs.items() if known == ref}
    return frozenset(stage.consortium.hospital(name).agent.key.keyid for name in names)


def _key(stage: Stage, party: str) -> KeyId:
    return stage.party(party).key.keyid


def _mounts(stage: Stage) -> Iterator[str]:
    """Mounts of workspaces that some process of this user still sees."""
    seen = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            lines = Path(f"/proc/{name}/mountinfo").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            where = line.split(" ")[4]
            if where.startswith(f"{stage.memory}/") and "work" in Path(where).parts:
                seen.add(where)
    yield from sorted(seen)
