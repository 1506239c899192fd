"""The nemesis does what the plan says when it says it, starts again who died, writes it all down, and heals it in the end."""

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

from tests.chaos.plan import HOSPITALS, Act, Kind, Plan
from tests.chaos.processes import containers, kill_conmon, kill_first
from tests.chaos.stage import Service, Stage, write_whole

ARMED_AT_ONCE = 6  # points, for each hospital
POINT_S = 20.0  # how long a point stays armed for somebody to come by
MANGLED_S = 45.0  # how long a rule waits for requests while others are made
REST_S = 4.0  # after a death at a point until the next is armed there: something must be reached
TICK_S = 0.1
KILLED = {  # what an order's failure may say after that: a killed guest looks like one that died of itself
    "guest": frozenset({"signal:9", "exit:137"}),
    "conmon": frozenset({"unknown", "runtime-unavailable", "attempts-spent"}),
}


@dataclass
class Journal:
    """What was done, when, to whom: one line of JSON for each act."""

    path: Path
    began: float = field(default_factory=time.monotonic)
    counts: Counter[str] = field(default_factory=Counter)

    def note(self, act: str, target: str, **values: Any) -> None:
        """Write a line and count it under the act's first word."""
        self.counts[act] += 1
        line = {"at_s": round(time.monotonic() - self.began, 2), "act": act, "target": target, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


@dataclass
class Nemesis:
    """One run's. `excused`: words of reasons, by order, for which it may fail: a container of its own was killed."""

    stage: Stage
    plan: Plan
    journal: Journal
    excused: dict[str, frozenset[str]] = field(default_factory=dict)
    fired: Counter[str] = field(default_factory=Counter)  # by point
    _due: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _rules: list[dict[str, Any]] = field(default_factory=list)
    _points: list[tuple[str, str, int]] = field(default_factory=list)
    _armed: dict[str, dict[str, tuple[dict[str, Any], float]]] = field(default_factory=dict)
    _clocks: dict[str, float] = field(default_factory=dict)
    _killed: set[int] = field(default_factory=set)  # processes that ended at a fault point
    _rests: dict[str, float] = field(default_factory=dict)  # by hospital: when points are armed again
    _numbers: int = 0

    def rage(self) -> None:
        """Everything of the plan, until its time is over. Whoever dies is started again."""
        begin = time.monotonic()
        self._points = [(point, act, 2) for point, act in self.plan.points]
        acts = list(self.plan.acts)
        while (at_s := time.monotonic() - begin) < self.plan.duration_s:
            while acts and acts[0].at_s <= at_s:
                self._do(acts.pop(0))
            self._tick()
            time.sleep(TICK_S)

    def heal(self) -> None:
        """Nothing goes wrong any more but the few requests that proxies are still to mangle, and everybody is back.

        Raises: NotStarted.
        """
        kept = [
            rule for rule in self._rules if rule["act"] != "cut"
        ]  # each mangles so many requests and no more
        for _, _, undo in self._due:
            undo()
        self._due.clear()
        self._rules[:] = kept
        self._write_rules()
        self._points.clear()
        self._armed.clear()
        self._clocks.clear()
        for hospital in HOSPITALS:
            self._write_faults(hospital)
        for service in self.stage.services.values():
            service.send(signal.SIGCONT)
            if service.child is not None and service.child.has_ended:
                service.start(self.stage.hosts)
        self.stage.wait_until_ready(lives=4)  # one may still be on its way out
        self.journal.note("healed", "everybody")

    def keep_alive(self) -> None:
        """Start again whoever ended."""
        for service in self.stage.revive():
            if service.child is not None and service.child.pid not in self._killed:
                self.journal.note("ended by itself", service.name, said=service.said()[-300:])

    # ---- time passes

    def _tick(self) -> None:
        now = time.monotonic()
        ready = [one for one in self._due if one[0] <= now]
        self._due = [one for one in self._due if one[0] > now]
        for _, _, undo in ready:
            undo()
        self._look_at_points(now)
        self.keep_alive()

    def _after(self, rest_s: float, undo: Callable[[], None]) -> None:
        self._numbers += 1
        self._due.append((time.monotonic() + rest_s, self._numbers, undo))

    # ---- acts

    def _do(self, act: Act) -> None:
        match act.kind:
            case Kind.KILL if act.target in {"conmon", "guest"}:
                self._kill_container(act)
            case Kind.KILL:
                self._kill(self.stage.services.get(act.target), act)
            case Kind.TERM:
                self._end(self.stage.services.get(act.target), act)
            case Kind.STALL:
                self._stall(self.stage.services.get(act.target), act)
            case Kind.CUT:
                self._cut(act)
            case Kind.MANGLE:
                self._mangle(act.target, None, act.values["act"], act.values["count"], act.values["s"])
                self.journal.note(f"mangle {act.values['act']}", act.target, count=act.values["count"])
            case Kind.CLOCK:
                self._move_clock(act)
            case Kind.FILL:
                self._fill(act)
            case _:
                assert_never(act.kind)

    def _kill(self, service: Service | None, act: Act) -> None:
        if service is None or service.child is None or service.child.has_ended:
            return
        service.back_at = time.monotonic() + act.values["s"]
        service.send(signal.SIGKILL)
        self.journal.note("kill", act.target, back_in_s=act.values["s"])

    def _end(self, service: Service | None, act: Act) -> None:
        if service is None or service.child is None or service.child.has_ended:
            return
        service.back_at = time.monotonic() + act.values["s"]
        service.send(signal.SIGTERM)
        self.journal.note("term", act.target)

    def _stall(self, service: Service | None, act: Act) -> None:
        if service is None or service.child is None or service.child.has_ended:
            return
        child = service.child
        child.send(signal.SIGSTOP)
        self._after(act.values["s"], lambda: child.send(signal.SIGCONT))
        self.journal.note("stall", act.target, s=act.values["s"])

    def _kill_container(self, act: Act) -> None:
        living = [one for one in containers() if act.target == "conmon" or one.first is not None]
        if not living:
            return
        target = living[min(int(act.values["which"] * len(living)), len(living) - 1)]  # rounded, it may be 1
        self.excused[target.order_id] = self.excused.get(target.order_id, frozenset()) | KILLED[act.target]
        if act.target == "conmon":
            kill_conmon(target)
            self.journal.note("kill conmon", target.name)
        elif kill_first(target):
            self.journal.note("kill guest", target.name)

    def _cut(self, act: Act) -> None:
        for source, target in act.values["ways"]:
            self.journal.note("cut", f"{source} to {target}", s=act.values["s"])
            if self.stage.hosts.can_cut:
                self.stage.hosts.cut(source, target)
                self._after(act.values["s"], lambda ends=(source, target): self.stage.hosts.heal(*ends))  # type: ignore[misc]
                continue
            for sender in self._keys_on(source):
                for party in self.stage.consortium.parties:
                    if self.stage.host_of(party) == target:
                        self._mangle(party.name, sender, "cut", 1 << 30, act.values["s"])

    def _keys_on(self, host: str) -> Iterator[str]:
        for party in self.stage.consortium.parties:
            if self.stage.host_of(party) == host:
                yield party.key.keyid

    def _mangle(self, target: str, sender: str | None, act: str, count: int, s: float) -> None:
        self._numbers += 1
        rule = {
            "id": str(self._numbers), "target": target, "sender": sender, "act": act, "count": count, "s": s,
        }  # fmt: skip
        self._rules.append(rule)
        self._write_rules()
        self._after(s if act == "cut" else MANGLED_S, lambda: self._drop_rule(rule))

    def _drop_rule(self, rule: dict[str, Any]) -> None:
        with suppress(ValueError):
            self._rules.remove(rule)
        self._write_rules()

    def _write_rules(self) -> None:
        write_whole(self.stage.memory / "rules.json", self._rules)

    def _move_clock(self, act: Act) -> None:
        self._clocks[act.target] = act.values["s_moved"]
        self._write_faults(act.target)
        self._after(act.values["s"], lambda: self._set_clock_right(act.target))
        self.journal.note("clock", act.target, moved_s=act.values["s_moved"], s=act.values["s"])

    def _set_clock_right(self, hospital: str) -> None:
        self._clocks.pop(hospital, None)
        self._write_faults(hospital)

    def _fill(self, act: Act) -> None:
        """The whole disk where the agent has one of its own, else the fault that its writes would meet."""
        if not self.stage.have_disks:
            self._arm(act.target, "ledger.commit", "full", skip=0, stays_s=act.values["s"])
            return
        heavy = self.stage.data(act.target) / "heavy"
        with suppress(OSError), heavy.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
        self._after(act.values["s"], lambda: heavy.unlink(missing_ok=True))
        self.journal.note("fill", act.target, s=act.values["s"])

    # ---- fault points

    def _look_at_points(self, now: float) -> None:
        """Take those off that fired or stood too long, and arm the next ones."""
        for hospital in HOSPITALS:
            armed = self._armed.setdefault(hospital, {})
            marks = self.stage.faults(hospital)
            for point, (told, until) in list(armed.items()):
                mark = marks.with_name(f"{marks.name}.fired") / told["id"]
                if mark.exists():
                    self._killed.add(json.loads(mark.read_bytes())["pid"])
                    self.fired[f"{point} {told['act']}"] += 1
                    self.journal.note(f"fault {told['act']}", f"{point} at {hospital}")
                    if told["act"] == "kill":
                        self._rests[hospital] = now + REST_S
                    del armed[point]
                    self._write_faults(hospital)
                elif until < now:
                    del armed[point]
                    self._write_faults(hospital)
                    if told["tries"] > 1:
                        self._points.append((point, told["act"], told["tries"] - 1))
            while len(armed) < ARMED_AT_ONCE and self._points and self._rests.get(hospital, 0.0) < now:
                point, act, tries = self._points.pop(0)
                if point in armed:
                    self._points.append((point, act, tries))
                    break
                self._numbers += 1
                self._arm(hospital, point, act, skip=self._numbers % 3, stays_s=POINT_S, tries=tries)

    def _arm(self, hospital: str, point: str, act: str, *, skip: int, stays_s: float, tries: int = 1) -> None:
        self._numbers += 1
        told = {"id": str(self._numbers), "act": act, "skip": skip, "sleep_s": 3.0, "tries": tries}
        self._armed.setdefault(hospital, {})[point] = (told, time.monotonic() + stays_s)
        self._write_faults(hospital)

    def _write_faults(self, hospital: str) -> None:
        armed = {point: told for point, (told, _) in self._armed.get(hospital, {}).items()}
        write_whole(self.stage.faults(hospital), {"clock_s": self._clocks.get(hospital, 0.0), "armed": armed})

    def points_hit(self) -> set[str]:
        """Every point that some process came by."""
        hits: set[str] = set()
        for hospital in HOSPITALS:
            marks = self.stage.faults(hospital)
            folder = marks.with_name(f"{marks.name}.hits")
            if folder.is_dir():
                hits |= {path.name for path in folder.iterdir()}
        return hits


@contextmanager
def raging(nemesis: Nemesis) -> Iterator[None]:
    """Whatever happens in the block, everything is healed at its end."""
    try:
        yield
    finally:
        nemesis.heal()
