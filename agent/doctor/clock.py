"""The clock: whether something keeps it right, and how far it is from those who sign for or to this agent."""

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from agent.doctor.lines import Check, Group, Unknown

GROUP = Group("clock")

TOLD_WITHIN_S = 2  # a Date has whole seconds, and servers write it once a second
SET_NTP = "timedatectl set-ntp true"


class Answered(Struct, frozen=True):
    """Somebody's own time in an answer, to the second, and this host's when the call began and when it ended."""

    name: str
    theirs: datetime
    began: datetime
    ended: datetime

    @property
    def skew_s(self) -> float:
        """How far this clock is ahead of theirs at least: 0 when the truth may lie in between."""
        early = (self.began - self.theirs).total_seconds() - TOLD_WITHIN_S
        late = (self.ended - self.theirs).total_seconds()
        return early if early > 0 else min(late, 0.0)


def judge(is_kept: bool | Unknown, answers: Sequence[Answered], skew_s: int) -> list[Check]:
    """`is_kept`: whether the kernel counts the clock as synchronised; `skew_s`: how far clocks may differ."""
    lines = [_kept(is_kept), *(_skew(answer, skew_s) for answer in answers)]
    if not answers:
        lines.append(GROUP.note("against others", "cannot tell: nobody answered with a time"))
    return lines


def _kept(is_kept: bool | Unknown) -> Check:
    name = "synchronised"
    if isinstance(is_kept, Unknown):
        return GROUP.unknown(name, is_kept)
    if is_kept:
        return GROUP.ok(name, "yes")
    return GROUP.warn(name, "no: the kernel knows of nothing that keeps the clock right", SET_NTP)


def _skew(answer: Answered, skew_s: int) -> Check:
    name = f"against {answer.name}"
    away = abs(answer.skew_s)
    side = "ahead" if answer.skew_s > 0 else "behind"
    seen = f"{away:.1f} s {side}" if away else "less than a second"
    if away > skew_s:
        return GROUP.fail(name, f"{seen}, {skew_s} s are allowed: signatures are refused", SET_NTP)
    if away > skew_s / 2:
        return GROUP.warn(name, f"{seen}, {skew_s} s are allowed", SET_NTP)
    return GROUP.ok(name, seen)
