"""The walk of one order over three hospitals, and the proof of it, told as it happens."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from agent.devkit.consortium import Consortium, Hospital, in_an_hour
from agent.devkit.demo.data import SPLITS, Split
from agent.devkit.demo.guests import DemoImages, alone
from agent.devkit.demo.show import Show, make_table
from agent.devkit.issuing import issue
from agent.devkit.server import now
from agent.devkit.waiting import wait_for
from agent.domain.chain import plan
from agent.domain.ids import Digest, OrderId, wire_time
from agent.domain.orders import ImageRef, Learnuplet, ModelRef, Order, Preduplet, SignedOrder
from agent.domain.receipts import Receipt, parse_receipt
from agent.domain.reports import ReportBody, parse_report, parse_result
from agent.domain.standings import OrderState
from agent.trust.envelope import parse_envelope

PROBLEM = "5d0c1c2e-9d0b-4f6e-8a53-2f0f3f0c7a11"
ORDER_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class Scene:
    """What every part of the story needs."""

    consortium: Consortium
    images: DemoImages
    files: dict[str, Path]
    show: Show

    def hospital(self, split: Split) -> Hospital:
        return self.consortium.hospital(split.hospital)

    def order(self, algo: Digest, train: list[Split], test: list[Split], *, attempts: int = 2) -> Learnuplet:
        """A learnuplet on these splits."""
        return Learnuplet(
            id=OrderId(str(uuid4())),
            orchestrator=self.consortium.orchestrators[0].key.keyid,
            problem=PROBLEM,
            problem_image=ImageRef(str(uuid4()), self.images.problem.digest),
            algo_image=ImageRef(str(uuid4()), algo),
            model_start=None,
            model_end=str(uuid4()),
            rank=0,
            train_data=tuple(split.ref for split in train),
            test_data=tuple(split.ref for split in test),
            max_attempts=attempts,
            not_before=wire_time(now()),
            expires=in_an_hour(),
        )

    def issue(self, order: Order) -> SignedOrder:
        """Signed and sent by the first orchestrator."""
        desk = self.consortium.orchestrators[0]
        return issue(order, self.consortium.book(), self.consortium.client(desk))

    def wait(self, signed: SignedOrder) -> OrderState:
        """How the order ended, drawn while it goes on."""
        book = self.consortium.book()
        with self.show.live() as live:

            def has_ended() -> bool:
                live.update(make_table(*self.chain(signed)), refresh=True)
                order = book.order(signed.order.id)
                if order is None or order.state is OrderState.OPEN:
                    return False
                is_whole = book.result(order.id) is not None and len(book.receipts(order.id)) == order.tasks
                return order.state is not OrderState.DONE or is_whole

            wait_for(has_ended, f"the end of order {signed.order.id}", timeout_s=ORDER_TIMEOUT_S)
            live.update(make_table(*self.chain(signed)), refresh=True)
        ended = book.order(signed.order.id)
        return OrderState.OPEN if ended is None else ended.state

    def chain(self, signed: SignedOrder) -> tuple[list[str], list[list[object]]]:
        """The chain as the orchestrator knows it from reports: columns and rows."""
        told: dict[int, ReportBody] = {}
        for body in self.consortium.book().reports(signed.order.id):
            report = parse_report(body)
            told[report.position] = report
        names = {split.ref: split for split in SPLITS}
        rows: list[list[object]] = []
        for task in plan(signed.order):
            last = told.get(task.position)
            receipt = None if last is None or last.receipt is None else _receipt(last.receipt)
            rows.append(
                [
                    task.position,
                    task.kind,
                    names[task.dataset].name,
                    names[task.dataset].hospital,
                    "waiting" if last is None else last.state,
                    None if receipt is None else f"{receipt.usage.wall_s:.2f} s",
                    None if last is None or last.score is None else f"{float(last.score):.4f}",
                ]
            )
        return ["", "task", "dataset", "hospital", "state", "took", "ROC AUC"], rows


def train(scene: Scene) -> SignedOrder:
    """One learnuplet trains at A, B, C and A again, and is tested on patients of C that no training saw."""
    show = scene.show
    show.chapter("One order trains at A, B, C, then A again, and is tested on held-out patients of C")
    signed = scene.issue(
        scene.order(
            scene.images.algo.digest,
            [split for split in SPLITS if split.use == "train"],
            [split for split in SPLITS if split.use == "test"],
        )
    )
    state = scene.wait(signed)
    show.expect("the order is done and its result is with the orchestrator", state is OrderState.DONE)
    return signed


def score(scene: Scene, signed: SignedOrder) -> None:
    """The score, beside what each hospital's own patients alone would have given."""
    show = scene.show
    show.chapter("What the chain reached, and what one hospital alone would have reached")
    body = scene.consortium.book().result(signed.order.id)
    told = {} if body is None else parse_result(body).scores
    test = next(split for split in SPLITS if split.use == "test")
    together = float(told[test.ref.id]) if test.ref.id in told else 0.0
    rows: list[list[object]] = [
        ["A, B, C together", sum(split.rows for split in SPLITS if split.use == "train"), f"{together:.4f}"]
    ]
    for hospital in ("A", "B", "C"):
        own = [split for split in SPLITS if split.use == "train" and split.hospital == hospital]
        reached = alone([scene.files[split.name] for split in own], scene.files[test.name])
        rows.append([f"{hospital} alone", sum(split.rows for split in own), f"{reached:.4f}"])
    show.table(["trained on", "patients", "ROC AUC on C's held-out patients"], rows)
    show.expect("the score was measured on held-out patients, and is far from chance", together > 0.9)


def cage(scene: Scene, signed: SignedOrder) -> None:
    """What the guest itself saw of its cage, from the log that only the operator of A can read."""
    show = scene.show
    show.chapter("The cage, as the algorithm saw it from inside (the operator's log at A)")
    seen = _facts(agent_command(scene.consortium.hospital("A"), "log", signed.order.id, "--json"))
    show.table(["seen in /proc", "value"], [[name, value] for name, value in seen.items()])
    show.expect("system calls are filtered (Seccomp 2)", seen.get("Seccomp") == "2")
    show.expect("no new privileges (NoNewPrivs 1)", seen.get("NoNewPrivs") == "1")
    show.expect("no capability, now or ever (CapBnd 0)", int(seen.get("CapBnd", "1"), 16) == 0)
    show.expect("loopback is the only network", seen.get("interfaces") == "lo")
    # As read inside, the map's ids are those of Podman's own user namespace, in which the agent's user is 0.
    show.expect("the agent's user is not in its world", not _maps(seen.get("uid_map", ""), 0))


def verify(scene: Scene, signed: SignedOrder) -> None:
    """The receipts, verified off line by `dc-compute verify`; and one flipped byte, named."""
    show = scene.show
    show.chapter("The receipts, verified off line: dc-compute verify")
    files = Evidence.of(scene, signed)
    told = files.verify()
    for line in told.stdout.rstrip().splitlines():
        show.console.print(f"{line}", markup=False, no_wrap=True, overflow="ellipsis")
    show.expect("the chain is whole and every link holds", told.returncode == 0)
    for what, path in (
        ("a receipt", files.receipts[1]),
        ("the order", files.order),
        ("the model", files.model),
    ):
        with files.flipped(path):
            refused = files.verify()
        words = refused.stderr.strip().splitlines()
        show.expect(f"one flipped bit in {what} is found", refused.returncode == 4, _code(words))


def predict(scene: Scene, signed: SignedOrder) -> None:
    """A preduplet: the finished model predicts for new patients of B, whose diagnosis nobody sealed."""
    show = scene.show
    show.chapter("A preduplet predicts for new patients of B")
    book, split = scene.consortium.book(), next(split for split in SPLITS if split.use == "predict")
    body = book.result(signed.order.id)
    model = None if body is None else parse_result(body).model
    if model is None:
        show.expect("a model to predict with", False)
        return
    order = Preduplet(
        id=OrderId(str(uuid4())),
        orchestrator=scene.consortium.orchestrators[0].key.keyid,
        problem=PROBLEM,
        algo_image=ImageRef(str(uuid4()), scene.images.algo.digest),
        model=ModelRef(model.digest, model.agent),
        data=(split.ref,),
        max_attempts=2,
        not_before=wire_time(now()),
        expires=in_an_hour(),
    )
    asked = scene.issue(order)
    state = scene.wait(asked)
    prediction = _receipt(json.loads(book.receipts(asked.order.id)[0])).outputs[0]
    answers = _blob(scene, split, prediction.digest).decode().split()[1:]  # below the header
    truths = scene.files["targets"].read_text().split()
    right = sum(
        (float(answer) >= 0.5) == (truth == "1") for answer, truth in zip(answers, truths, strict=True)
    )
    show.say(f"{right} of {len(truths)} diagnoses predicted right, from {prediction.name}")
    show.expect(
        "the prediction is done and better than chance",
        state is OrderState.DONE and right > len(truths) * 0.8,
    )


@dataclass(frozen=True, slots=True)
class Evidence:
    """An order, its receipts, the roster and the final model as files, as an auditor would have them."""

    order: Path
    receipts: tuple[Path, ...]
    roster: Path
    model: Path

    @classmethod
    def of(cls, scene: Scene, signed: SignedOrder) -> "Evidence":
        """Written to a folder of their own."""
        folder = scene.consortium.folder / "evidence"
        folder.mkdir(mode=0o700, exist_ok=True)
        book = scene.consortium.book()
        paths = []
        for position, envelope in enumerate(book.receipts(signed.order.id)):
            paths.append(folder / f"receipt-{position}.json")
            paths[-1].write_bytes(envelope)
        made = cls(folder / "order.json", tuple(paths), folder / "roster.toml", folder / "model.tar")
        made.order.write_bytes(signed.envelope)
        made.roster.write_text(scene.consortium.roster.to_toml())
        last = _receipt(json.loads(paths[-1].read_bytes()))
        if last.model_out is not None:
            made.model.write_bytes(_blob(scene, SPLITS[3], last.model_out))
        return made

    def verify(self) -> "subprocess.CompletedProcess[str]":
        """What `dc-compute verify` says of them."""
        names = [
            str(self.order),
            *map(str, self.receipts),
            "--roster",
            str(self.roster),
            "--model",
            str(self.model),
        ]
        return run_agent(self.order.parent, "verify", *names, "--complete")

    def flipped(self, path: Path) -> "Flipped":
        """The same with one bit of this file flipped."""
        return Flipped(path)


class Flipped:
    """A file with one bit flipped in its middle while the block runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._whole = path.read_bytes()

    def __enter__(self) -> None:
        spoiled = bytearray(self._whole)
        spoiled[len(spoiled) // 2] ^= 1
        self._path.write_bytes(spoiled)

    def __exit__(self, *_: object) -> None:
        self._path.write_bytes(self._whole)


def agent_command(hospital: Hospital, *words: str) -> str:
    """What a command of this hospital's operator prints."""
    return run_agent(hospital.agent.folder, *words).stdout


def run_agent(home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """`dc-compute --home HOME WORDS`, as it ended."""
    command = [sys.executable, "-m", "agent", "--home", str(home), *words]
    env = {**os.environ, "COLUMNS": "150"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def _code(words: list[str]) -> str:
    """The code in the first line of a command's complaint, `error [code]: …`."""
    found = re.match(r"error \[?([a-z-]+)", words[0]) if words else None
    return found[1] if found else ""


def _facts(log: str) -> dict[str, str]:
    """The guest's own lines `cage: NAME VALUE`, of its first run."""
    seen: dict[str, str] = {}
    for run in json.loads(log or '{"runs": []}')["runs"]:
        for line in run["text"].splitlines():
            if line.startswith("cage: "):
                name, _, value = line.removeprefix("cage: ").partition(" ")
                seen.setdefault(name, value)
    return seen


def _maps(uid_map: str, uid: int) -> bool:
    """Whether `uid` of the namespace above is one of those that the map gives to the guest; no map counts as yes."""
    fields = [int(word) for word in uid_map.split()]
    if not fields:
        return True
    return any(first <= uid < first + count for first, count in zip(fields[1::3], fields[2::3], strict=True))


def _receipt(envelope: dict[str, object]) -> Receipt:
    return parse_receipt(parse_envelope(json.dumps(envelope).encode(), limit_bytes=1 << 20).payload)


def _blob(scene: Scene, split: Split, digest: Digest) -> bytes:
    """A blob from the storage of the hospital that has this split, asked by the first orchestrator."""
    storage = scene.consortium.roster.find(scene.hospital(split).storage.key.keyid)
    if storage is None:
        return b""
    client = scene.consortium.client(scene.consortium.orchestrators[0])
    return client.send(storage, "GET", f"/v1/blobs/{digest}/content", is_answer_signed=False)
