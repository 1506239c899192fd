"""What the operator's routes on held orders and images do: show what waits, and take the operator's word.

They answer from the ledger alone. No archive is read in this process: what one holds, a worker has read and recorded.
"""

from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import Response

from agent.api.ask import Ask, no_query
from agent.api.desk import Desk
from agent.api.problems import json_answer
from agent.api.views import HeldJob, HeldPage, ImageFiles, ImageState, ImageView, RulingView
from agent.domain.approvals import Ruling, Verdict
from agent.domain.chain import task_at
from agent.domain.ids import Digest, JobId, parse_digest, parse_order_id
from agent.domain.images import PAGE_ENTRIES
from agent.domain.jobs import Job, JobState
from agent.domain.orders import SignedOrder
from agent.domain.strict_json import decode
from agent.errors import BadOrder, NotFound
from agent.pipeline.hold import follow_ruling
from agent.pipeline.host import Host, signed_order
from agent.ports.ledger import JobQuery

MAX_RULING_BYTES = 8 << 10
MOST_HELD = 500


class RulingBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The operator's word on `target`: an image's digest, or an order's id for each of its images that the host lacks."""

    target: Annotated[str, Meta(min_length=1, max_length=80)]
    verdict: Verdict
    reason: Annotated[str, Meta(max_length=500)] | None = None


class FilesQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of an image's files. `page` is the `next` of the page before."""

    page: Annotated[int, Meta(ge=0, le=1 << 20)] = 0


def get_held(ask: Ask, desk: Desk) -> Response:
    """What waits for the operator: orders, and the images they name, oldest first."""
    no_query(ask)
    host = desk.host
    jobs = host.ports.ledger.jobs(JobQuery(states=frozenset({JobState.HELD}), limit=MOST_HELD))
    return json_answer(HeldPage(tuple(_held(job, host) for job in reversed(jobs))))


def get_image(ask: Ask, desk: Desk) -> Response:
    """One image: what a worker read of its archive, who asks for it, what the operator ruled so far."""
    no_query(ask)
    host, image = desk.host, ask.image
    about = host.ports.ledger.description(image)
    rulings = host.ports.ledger.rulings(image=image)
    jobs = host.ports.ledger.jobs(JobQuery(states=frozenset({JobState.HELD}), limit=MOST_HELD))
    asked_by = tuple(held for held in (_held(job, host) for job in jobs) if image in _digests(held))
    if about is None and not rulings and not asked_by and image not in host.policy.images:
        raise NotFound(f"nobody asked for image {image}")
    return json_answer(
        ImageView(
            digest=image,
            is_listed=image in host.policy.images,
            description=about,
            rulings=rulings,
            asked_by=asked_by,
        )
    )


def get_image_files(ask: Ask, desk: Desk) -> Response:
    """A page of the entries of an image's layers, in the order in which they are unpacked."""
    query, ledger, image = ask.query_as(FilesQuery), desk.host.ports.ledger, ask.image
    if ledger.description(image) is None:
        raise NotFound(f"image {image} was not read, or nothing waits for it any more")
    entries = ledger.listing(image, query.page)
    is_full = len(entries) == PAGE_ENTRIES and bool(ledger.listing(image, query.page + 1))
    return json_answer(ImageFiles(entries, query.page + 1 if is_full else None))


def post_ruling(ask: Ask, desk: Desk) -> Response:
    """Approve or deny an image, or the images that an order waits for."""
    no_query(ask)
    host = desk.host
    told = decode(ask.body, RulingBody, limit_bytes=MAX_RULING_BYTES, what="the ruling")
    meant = _images(told.target, host)
    ledger, is_new = host.ports.ledger, False
    for image in meant.ruled_now:
        ruling = Ruling(
            image=image, verdict=told.verdict, at=host.ports.now(), uid=ask.uid, reason=told.reason
        )
        is_new |= ledger.rule(ruling)
    states: dict[JobId, JobState] = {}
    for image in meant.all:  # also when nothing is new: what a crash kept from following follows now
        states |= {job.id: job.state for job in follow_ruling(image, host)}
    rulings = [ledger.ruling(image) for image in meant.all]
    view = RulingView(tuple(ruling for ruling in rulings if ruling is not None), states)
    return json_answer(view, 202 if is_new else 200)


class _Meant(Struct, frozen=True):
    """The images that a target means, and those of them that a ruling on it is about."""

    all: tuple[Digest, ...]
    ruled_now: tuple[Digest, ...]


def _images(target: str, host: Host) -> _Meant:
    """What the operator means: an image, whatever was said of it before; or of an order those on which nobody ruled yet.

    Raises: BadOrder, NotFound.
    """
    try:
        image = parse_digest(target)
        return _Meant((image,), (image,))
    except ValueError:
        pass
    try:
        record = host.ports.ledger.order(parse_order_id(target))
    except ValueError as cause:
        raise BadOrder(f"{target!r} is neither an image's digest nor an order's id") from cause
    named = dict.fromkeys(signed_order(record).order.images)
    unlisted = tuple(image for image in named if image not in host.policy.images)
    unruled = tuple(image for image in unlisted if host.ports.ledger.verdict_on(image) is None)
    return _Meant(unlisted, unruled)


def _held(job: Job, host: Host) -> HeldJob:
    record = host.ports.ledger.order(job.order_id)
    signed = signed_order(record)
    return HeldJob(
        job=job.id,
        order=job.order_id,
        position=job.position,
        task=job.kind,
        dataset=task_at(signed.order, job.position).dataset,
        orchestrator=record.signer,
        sender=record.sender,
        held_since=job.changed_at,
        expires=record.expires,
        images=tuple(_states(signed, host)),
    )


def _states(signed: SignedOrder, host: Host) -> Iterable[ImageState]:
    for role, image in signed.order.roles:
        is_listed = image in host.policy.images
        verdict = host.ports.ledger.verdict_on(image)
        found = host.ports.ledger.description(image)
        yield ImageState(
            role=role,
            digest=image,
            is_admitted=verdict is Verdict.APPROVED or (is_listed and verdict is None),
            is_read=found is not None,
            problem=None if found is None else found.problem,
        )


def _digests(held: HeldJob) -> frozenset[Digest]:
    return frozenset(image.digest for image in held.images)
