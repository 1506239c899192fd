"""The inputs of one task: images loaded, the model unpacked, the dataset opened with the shares of its key.

Dataset plaintext, shares and the key exist only in memory and in the workspace. The order of work is the cheapest refusal
first: what the dataset's owner allows, then images and model, and the orchestrators' shares last, so that no share leaves an
orchestrator for a task that could not have run.
"""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from agent.domain.audit import NewEvent
from agent.domain.chain import TaskKind, images_for
from agent.domain.ids import Digest, KeyId
from agent.domain.receipts import next_link
from agent.errors import AgentError, TooLarge
from agent.pipeline import audit
from agent.pipeline.admit import require_admitted
from agent.pipeline.host import Context, Host
from agent.pipeline.opening import LateOpener, open_into
from agent.pipeline.outputs import unpack
from agent.pipeline.phases import Phases
from agent.pipeline.workspace import Workspace, add_pred, set_modes, workspace
from agent.ports.progress import Meter
from agent.ports.storage import BlobInfo, DatasetInfo
from agent.trust.seal import SignedHeader, check_use, parse_header
from agent.trust.shares import ShareKeyPair, ShareRequest, share_info, unwrap_data_key

DATA, MODEL = "data", "model"  # folders of the workspace
JUST_NOW_S = 1.0  # where an order was placed a moment ago, storage is not asked the same thing again


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the runs of a task need. `data`: a folder with the one dataset file and an empty `pred`.

    `model`: a folder with the earlier model, or an empty one; the guest's own to write in when it learns. `told`: lines for the
    audit log, of the shares that came.
    """

    images: dict[str, Digest]  # by role
    data: Path
    model: Path
    told: tuple[NewEvent, ...] = ()


def dataset_for(context: Context, host: Host) -> tuple[DatasetInfo, SignedHeader]:
    """What storage and the owner say of the task's dataset, after checking that the owner allows this use here.

    Raises: DatasetMissing, StorageUnavailable, BadSeal, TrustError, ShareRefused.
    """
    ref = context.task.dataset
    info = host.ports.storage.dataset(ref, within_s=JUST_NOW_S)
    signed = parse_header(info.header, host.roster, at=host.ports.now())
    also = host.roster.valid_keys_of(host.me, host.ports.now())
    check_use(signed, dataset=ref, agent=host.me, kind=context.task.kind, also=also)
    return info, signed


def model_for(context: Context, host: Host) -> BlobInfo | None:
    """What storage says of the model the task starts from; None when it starts from nothing.

    Raises: BlobMissing, StorageUnavailable; TooLarge for a model over what this host takes.
    """
    _, digest = next_link(context.signed, context.receipts)
    if digest is None:
        return None
    info = host.ports.storage.blob(digest, near=_maker_of(digest, context))
    if info.size > host.rules.max_model_bytes:
        raise TooLarge(f"{digest} has {info.size} bytes, the limit is {host.rules.max_model_bytes}")
    return info


def fetch(
    context: Context,
    info: DatasetInfo,
    header: SignedHeader,
    model: BlobInfo | None,
    space: Workspace,
    phase: Phases,
    meter: Meter,
    host: Host,
    meanwhile: Callable[[Inputs], None],
) -> Inputs:
    """Everything the task's runs need, in the workspace. Its phases: fetch (images and model), shares, open (the dataset).

    The sealed dataset is on its way while the shares are asked for: it waits for the key at its first piece. `meanwhile` is
    told before both where the inputs will lie; images and model are there by then.
    Raises: OutsideError by the ports; TrustError for a header, share or dataset that does not hold; BadImage; BadOutput for a
    model that is no plain archive.
    """
    with phase("fetch"):
        images = _images(context, meter, host)
        model_folder = _model(context, model, space, meter, host)
    require_admitted(context, host)  # images and a model may have taken hours
    key: Future[bytes] = Future()

    def ask_shares() -> None:
        with phase("shares"):
            try:
                key.set_result(_data_key(context, header, host))
            finally:
                key.cancel()  # where it did not come, whoever waits for it goes

    def key_is_here() -> bytes:
        data_key = key.result()
        meter.begin("open", "dataset", total=info.size)
        return data_key

    with phase("open"):
        meter.begin("fetch", "shares")
        data = space.readable(DATA)
        add_pred(data)
        inputs = Inputs(images, data, model_folder)
        meanwhile(inputs)
        opener = LateOpener(header, key_is_here)
        host.ports.together(
            ask_shares,
            lambda: _open_dataset(info, opener, data / context.task.dataset.id, space, meter, host),
        )
    holders = [holder.keyid for holder in header.header.orchestrators]
    return dataclasses.replace(inputs, told=audit.shares("received", context, holders))


def kept_inputs(images: dict[str, Digest], space: Workspace) -> Inputs:
    """The same as a worker before this one left it."""
    return Inputs(images, space.root / DATA, space.root / MODEL)


def _images(context: Context, meter: Meter, host: Host) -> dict[str, Digest]:
    named = images_for(context.signed.order, context.task)
    return {role: _image(role, digest, context, meter, host) for role, digest in named}


def _image(role: str, digest: Digest, context: Context, meter: Meter, host: Host) -> Digest:
    """The digest of an image, loaded. It comes by the spool on disk, where the attempt has a folder of its own too."""
    rules, runtime = host.rules, host.ports.runtime
    if runtime.image(digest) is None:
        size = image_bytes(digest, host)
        low = rules.low_disk_bytes
        with workspace(context.job, rules.spool, runtime, reserve_bytes=size, keep_free=low) as spool:
            archive = spool.private("image")
            meter.begin("fetch", f"{role} image", total=size)
            meter.grows(archive)
            host.ports.storage.fetch_blob(digest, archive, limit_bytes=size)
            meter.begin("load", f"{role} image")
            runtime.load(archive, digest)
    return digest


def image_bytes(digest: Digest, host: Host) -> int:
    """How large storage says an image's archive is.

    Raises: BlobMissing, StorageUnavailable; TooLarge over what this host takes.
    """
    size = host.ports.storage.blob(digest).size
    if size > host.rules.max_image_bytes:
        raise TooLarge(f"{digest} has {size} bytes, the limit is {host.rules.max_image_bytes}")
    return size


def _model(context: Context, model: BlobInfo | None, space: Workspace, meter: Meter, host: Host) -> Path:
    """The folder of the model the task starts from. Its archive is gone once it is unpacked: both take room."""
    is_learning = context.task.kind is TaskKind.LEARN
    folder = space.writable(MODEL) if is_learning else space.readable(MODEL)
    if model is not None:
        archive = space.private("model.tar")
        near = _maker_of(model.digest, context)
        meter.begin("fetch", "model", total=model.size)
        meter.grows(archive)
        host.ports.storage.fetch_blob(model.digest, archive, limit_bytes=model.size, near=near, known=model)
        # The host's own ceilings: an order limits what its tasks leave, not what they start from.
        unpack(archive, folder, replace(host.policy.ceilings, output_bytes=max(1, model.size)))
        space.drop(archive)
        set_modes(folder, writable=is_learning)
    return folder


def _maker_of(model: Digest, context: Context) -> KeyId | None:
    """The agent whose storage holds this model: the first whose receipt left it, else the one the order names."""
    start = context.signed.order.start_model
    if start is not None and start.digest == model:
        return start.agent
    return next((r.signer for r in context.receipts if r.receipt.model_out == model), None)


def _data_key(context: Context, header: SignedHeader, host: Host) -> bytes:
    """The dataset's key, from every orchestrator's share. Raises: ShareWithheld, BadShare, OrchestratorUnavailable."""
    pair = ShareKeyPair()
    task, signed = context.task, context.signed
    request = ShareRequest(
        order=signed.envelope,
        receipts=tuple(receipt.envelope for receipt in context.receipts),
        position=task.position,
        dataset=task.dataset.id,
        version=task.dataset.version,
        header=header.envelope,
        hpke_key=pair.public_base64,
    ).encode()
    holders = [holder.keyid for holder in header.header.orchestrators]
    shares: dict[KeyId, bytes] = {}
    ledger, asked = host.ports.ledger, audit.shares("asked", context, holders, len(request))
    ledger.record_events(asked, host.ports.now())

    def ask(holder: KeyId) -> None:
        sealed = host.ports.orchestrators.share(holder, request)
        info = share_info(signed.digest, task.position, task.dataset.id, host.me, holder)
        shares[holder] = pair.open(sealed, info)

    try:
        host.ports.together(*(partial(ask, holder) for holder in holders))
    except AgentError:  # those that came were released, whatever another one says
        ledger.record_events(audit.shares("received", context, shares), host.ports.now())
        raise
    return unwrap_data_key(header, shares)


def _open_dataset(
    info: DatasetInfo,
    opener: LateOpener,
    target: Path,
    space: Workspace,
    meter: Meter,
    host: Host,
) -> None:
    """The dataset's plaintext at `target`, by a file that no guest sees."""
    partial = space.private("dataset.partial")
    open_into(target, partial, opener, info, host.ports.storage, meter.moved)
