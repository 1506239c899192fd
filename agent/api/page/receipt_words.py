"""A receipt in plain words: what its agent signed, as sentences and facts for somebody who never saw one."""

from msgspec import Struct

from agent.api.page.lens import Lens
from agent.api.page.words import short, size, span, when
from agent.domain.chain import TaskKind
from agent.domain.receipts import Outcome, Receipt

WORK = {
    TaskKind.LEARN: "trained on",
    TaskKind.TEST: "tested the model on",
    TaskKind.PREDICT: "predicted for",
}


class Fact(Struct, frozen=True):
    """A name, what is told under it, and an exact value (a digest or id) that goes with it."""

    name: str
    words: str
    exact: str | None = None


class Section(Struct, frozen=True):
    """What belongs together."""

    title: str
    facts: tuple[Fact, ...]


def sections(receipt: Receipt, lens: Lens) -> tuple[Section, ...]:
    """Everything that the receipt says."""
    return tuple(
        Section(title, tuple(facts))
        for title, facts in (
            ("What was done", _done(receipt, lens)),
            ("What went in, what came out", _models(receipt)),
            ("What ran, and in which cage", _cage(receipt)),
            ("What it cost", _cost(receipt)),
            ("How it is bound to the rest", _links(receipt)),
        )
        if facts
    )


def _done(receipt: Receipt, lens: Lens) -> list[Fact]:
    agent, task = lens.who(receipt.agent), receipt.task
    ended = "and it ended well" if receipt.outcome is Outcome.DONE else f"and it failed: {receipt.reason}"
    took = span((receipt.finished - receipt.started).total_seconds())
    told = [
        Fact("task", f"{agent.name} {WORK[task.kind]} one dataset, {ended}"),
        Fact("dataset", f"version {task.version}", task.dataset),
        Fact("when", f"{when(receipt.started)} to {when(receipt.finished)} UTC, {took}"),
        Fact("attempt", f"number {receipt.attempt}"),
    ]
    if receipt.score is not None:
        told.append(
            Fact("score", f"{receipt.score}, as the problem's own program measured it; larger is better")
        )
    return told


def _models(receipt: Receipt) -> list[Fact]:
    told = []
    if receipt.model_in is None:
        told.append(Fact("model before", "none: this was the first training"))
    else:
        told.append(Fact("model before", "the model it began with", receipt.model_in))
    if receipt.model_out is not None:
        same = receipt.model_out == receipt.model_in
        told.append(Fact("model after", "unchanged" if same else "the model that it left", receipt.model_out))
    for output in receipt.outputs:
        told.append(
            Fact("output", f"{output.name}, {size(output.size)}, kept at that host's storage", output.digest)
        )
    return told


def _cage(receipt: Receipt) -> list[Fact]:
    told = []
    for image in receipt.images:
        approved = (
            f", approved there {when(image.approved)} UTC" if image.approved else ", listed in its policy"
        )
        told.append(Fact(f"{image.role} image", f"ran in a container{approved}", image.digest))
    cage = receipt.sandbox
    if cage is None:
        return told or [Fact("cage", "no container ran")]
    told.append(Fact("container engine", f"{cage.runtime} {cage.version}"))
    for kind, digest in cage.seccomp.items():
        told.append(Fact(f"filter of system calls ({kind})", "in force while it ran", digest))
    held = ", ".join(f"{name} {value}" for name, value in cage.ceilings.items())
    told.append(Fact("ceilings", held or "none"))
    if cage.absent:
        told.append(Fact("not enforced there", f"{', '.join(cage.absent)}; that host's policy accepts it"))
    return told


def _cost(receipt: Receipt) -> list[Fact]:
    usage = receipt.usage
    told = [Fact("time", span(usage.wall_s))]
    if usage.cpu_s is not None:
        told.append(Fact("processor time", span(usage.cpu_s)))
    if usage.max_memory_bytes is not None:
        told.append(Fact("most memory", size(usage.max_memory_bytes)))
    if usage.phases:
        told.append(Fact("phases", ", ".join(f"{name} {span(s)}" for name, s in usage.phases.items())))
    return told


def _links(receipt: Receipt) -> list[Fact]:
    before = "the order itself: this is the first task" if receipt.position == 0 else "the receipt before it"
    return [
        Fact(
            "order",
            f"{short(receipt.order_id)}, task {receipt.position} of its chain",
            receipt.order,
        ),
        Fact("follows on", before, receipt.previous),
        Fact("policy", "of that host when it ran", receipt.policy),
    ]
