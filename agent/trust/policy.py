"""The host's policy: what its operator lets run here, and how much of the host it may use.

An empty list admits nothing, so an empty policy admits nothing. Nothing here turns a check off.

What the operator ruled on an image counts beside the list `images`, and beside nothing else: an approved digest is as
if it stood there, a denied one as if it did not. With `hold_unknown` an order that lacks nothing but the operator's word
on its images is held for it; it runs no sooner for that.

Shape (TOML): orchestrators = [keyid, …], images = ["sha256:…", …], datasets = [uuid, …] or "*", kinds =
["learn", "test", "predict"], hold_unknown = true or false, accept_missing = [name of a ceiling, …], allow_build = true or
false, a table [ceilings] with the maxima that differ from the defaults, and a table [bases] with the digest of the archive
that each name of a Dockerfile's FROM stands for.
"""

import tomllib
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, Self

import msgspec
from msgspec import Meta, Struct

from agent.domain.approvals import Verdict, VerdictOn, no_word
from agent.domain.ceilings import DEFAULT_CEILINGS, Ceilings
from agent.domain.chain import Task, TaskKind
from agent.domain.ids import Digest, DigestField, KeyIdField, UuidField, digest_of
from agent.domain.orders import Limits, SignedOrder
from agent.domain.prepared import prepared
from agent.errors import BadSettings, ImageDenied, PolicyRefused

EVERY_DATASET: Final = "*"

CeilingName = Literal[
    "wall_s",
    "memory_bytes",
    "cpu_millis",
    "pids",
    "open_files",
    "output_bytes",
    "output_files",
    "log_bytes",
    "tmp_bytes",
]


class _Terms(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What stands in the file."""

    orchestrators: tuple[KeyIdField, ...] = ()  # whose orders run here
    images: tuple[DigestField, ...] = ()  # problem and algo images, by the digest of their archive
    datasets: tuple[UuidField, ...] | Literal["*"] = ()  # which of this host's datasets may be used
    kinds: tuple[TaskKind, ...] = ()  # what may be done with them
    hold_unknown: bool = False  # hold an order for the operator's word on its images, instead of refusing it
    ceilings: Ceilings = DEFAULT_CEILINGS  # the most that one task may use
    accept_missing: tuple[CeilingName, ...] = ()  # ceilings this host cannot enforce, and the operator knows
    allow_build: bool = False  # whether images are built here from a context with a Dockerfile
    bases: dict[str, DigestField] = {}  # what FROM may name: the archive that each name stands for


class HostPolicy(_Terms, frozen=True, kw_only=True):
    """A policy as it was read. `digest` is that of the file's exact text and goes into each receipt."""

    digest: Annotated[Digest, Meta(min_length=71, max_length=71)]

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """The policy in this file's text; the empty text is the policy that admits nothing.

        Raises: BadSettings for anything that is not TOML, not known, or not of its kind.
        """
        try:
            terms = msgspec.convert(_with_default_ceilings(tomllib.loads(text)), prepared(_Terms))
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as cause:
            raise BadSettings(f"the policy: {cause}") from cause
        return cls(**msgspec.structs.asdict(terms), digest=digest_of(text.encode("utf-8")))

    def admit(self, order: SignedOrder, tasks: Iterable[Task], ruled: VerdictOn = no_word) -> None:
        """Return only when this host may run these tasks of this order.

        `tasks` are those that would run here: the policy of another host judges the others. `ruled` tells what the
        operator decided on an image. Raises: ImageDenied; PolicyRefused, naming what the operator would have to add to
        which list.
        """
        for image in self._unruled(order, tuple(tasks), ruled):
            _require(image, self.images, "images")

    def admit_or_hold(
        self, order: SignedOrder, tasks: Iterable[Task], ruled: VerdictOn = no_word
    ) -> tuple[Digest, ...]:
        """The images on which this order waits for the operator's word; none when it may run as `admit` says.

        Raises: ImageDenied; PolicyRefused when it lacks anything else, or when unknown images are not held here.
        """
        unknown = self._unruled(order, tuple(tasks), ruled)
        if unknown and not self.hold_unknown:
            _require(unknown[0], self.images, "images")
        return unknown

    def _unruled(self, order: SignedOrder, judged: tuple[Task, ...], ruled: VerdictOn) -> tuple[Digest, ...]:
        """The order's images that are neither listed nor approved, when nothing else is wrong with it.

        Raises: ImageDenied, PolicyRefused.
        """
        _require(order.signer, self.orchestrators, "orchestrators")
        verdicts = {image: ruled(image) for image in order.order.images}
        for image, verdict in verdicts.items():
            if verdict is Verdict.DENIED:
                raise ImageDenied(f"the operator of this host denied image {image}")
        if not judged:
            raise PolicyRefused(f"order {order.order.id} was brought without a task to judge")
        for task in judged:
            _require(task.kind, self.kinds, "kinds")
            if self.datasets != EVERY_DATASET:
                _require(task.dataset.id, self.datasets, "datasets")
        return tuple(
            image
            for image, verdict in verdicts.items()
            if verdict is not Verdict.APPROVED and image not in self.images
        )

    def admit_build(self) -> None:
        """Return only when this host builds images. Raises: PolicyRefused."""
        if not self.allow_build:
            raise PolicyRefused("`allow_build` of policy.toml is not true: this host builds no images")

    def ceilings_for(self, limits: Limits) -> Ceilings:
        """The ceilings of a task: what the order asks for, and never more than this host's maximum."""
        asked = {
            name: value for name, value in msgspec.structs.asdict(limits).items() if isinstance(value, int)
        }
        lowered = {name: min(value, getattr(self.ceilings, name)) for name, value in asked.items()}
        return msgspec.structs.replace(self.ceilings, **lowered)


def _require(wanted: str, admitted: Iterable[str], where: str) -> None:
    if wanted not in admitted:
        raise PolicyRefused(f'`{where}` of policy.toml lacks "{wanted}"')


def _with_default_ceilings(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with the maxima that its table [ceilings] leaves out."""
    told = tree.get("ceilings", {})
    if not isinstance(told, dict):
        return tree  # the types refuse it
    return {**tree, "ceilings": {**msgspec.structs.asdict(DEFAULT_CEILINGS), **told}}
