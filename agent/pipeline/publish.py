"""Outputs leave the workspace: packed, named by digest, put on this node's own storage."""

from functools import partial
from pathlib import Path

from agent.domain.chain import TaskKind
from agent.domain.ids import Digest, digest_of
from agent.domain.receipts import Output
from agent.domain.strict_json import encode
from agent.errors import BadOutput
from agent.pipeline import audit
from agent.pipeline.host import Context, Host
from agent.pipeline.outputs import file_digest, pack
from agent.pipeline.run import Results
from agent.pipeline.workspace import Workspace, packed_bytes_needed
from agent.ports.storage import BlobKind


def publish(context: Context, results: Results, space: Workspace, host: Host) -> Output:
    """The task's one output, lying at this node's storage under its digest.

    A learn task leaves `model` (a tar), a test task `performance.json`, a predict task `pred/<dataset id>`.
    Raises: BadOutput; StorageUnavailable.
    """
    archive, name, kind, digest = _prepare(context, results, space)
    size = archive.stat().st_size
    record, told = host.ports.ledger.record_events, partial(audit.upload, job=context.job, host=host)
    record([told("started", digest=digest, kind=kind, size=size)], host.ports.now())
    host.ports.storage.put_blob(digest, kind, archive)
    record([told("ended", digest=digest, kind=kind, size=size)], host.ports.now())
    return Output(name=name, digest=digest, size=size)


def _prepare(context: Context, results: Results, space: Workspace) -> tuple[Path, str, BlobKind, Digest]:
    if results.model is not None:
        if not results.model_files:
            raise BadOutput("the training left no model: no file under /data/model")
        content_bytes = sum((results.model / name).stat().st_size for name in results.model_files)
        space.keep_only(packed_bytes_needed(content_bytes, len(results.model_files)))
        archive = space.private("model_out.tar")
        return archive, "model", BlobKind.MODEL, pack(results.model, results.model_files, archive)
    if results.performance is not None:
        document = space.private("performance.json")
        document.write_bytes(encode(results.performance))
        return document, "performance.json", BlobKind.PERFORMANCE, digest_of(document.read_bytes())
    if results.prediction is not None:
        name = f"pred/{context.task.dataset.id}"
        return results.prediction, name, BlobKind.PREDICTION, file_digest(results.prediction)
    raise BadOutput(f"a {TaskKind(context.task.kind)} task left nothing")
