"""What is kept of a run where it is known (runc: run.json, Podman: a label), so that another worker can go on with it."""

from collections.abc import Sequence
from typing import Self

import msgspec
from msgspec import Struct

from agent.domain.ceilings import Ceilings
from agent.domain.ids import Digest, digest_of
from agent.domain.prepared import prepared
from agent.ports.runtime import Cage, RunSpec


class Lying(Struct, frozen=True):
    """What lay in the folders of a guest before it began, an earlier model: it does not count."""

    bytes: int
    entries: int


class Kept(Struct, frozen=True, kw_only=True):
    """`cage` and `ceilings` are those that the container was made with: a receipt tells of them whatever the settings and the
    seccomp files say by now. `plan` tells a run of the same name that is another one.
    """

    plan: Digest
    cage: Cage
    ceilings: Ceilings
    before: Lying

    @classmethod
    def of(cls, spec: RunSpec, cage: Cage, before: Lying) -> Self:
        """What is to be kept of this run."""
        return cls(plan=plan_of(spec), cage=cage, ceilings=spec.ceilings, before=before)

    @property
    def holds_memory(self) -> bool:
        """Whether the kernel bounds the memory of all its processes together."""
        return self.cage.ceilings.get("memory_bytes", "").endswith(" by cgroup")


def plan_of(spec: RunSpec) -> Digest:
    """What a run does: two of one plan are one. Ceilings are no part of it: the container keeps those it was made with."""
    folders: Sequence[object] = [(str(one.source), one.target, one.is_writable) for one in spec.mounts]
    return digest_of(msgspec.json.encode([spec.image, spec.kind, spec.args, folders]))


def write_kept(kept: Kept) -> str:
    """As text, for `read_kept`."""
    return msgspec.json.encode(kept).decode()


def read_kept(text: str) -> Kept | None:
    """What was kept; None when nothing was, or nothing that this version understands."""
    try:
        return msgspec.json.decode(text, type=prepared(Kept))
    except msgspec.MsgspecError:
        return None
