"""Outputs leave the workspace: packed, named by digest, put on this node's own storage."""

from pathlib import Path

from msgspec import Struct

from agent.domain.chain import TaskKind
from agent.domain.ids import Digest, digest_of
from agent.domain.receipts import Output
from agent.domain.strict_json import encode
from agent.errors import BadOutput
from agent.pipeline.host import Context, Host
from agent.pipeline.outputs import file_digest, pack
from agent.pipeline.phases import Phases
from agent.pipeline.rows import Results
from agent.pipeline.workspace import Workspace, packed_bytes_needed
from agent.ports.storage import BlobKind


class Packed(Struct, frozen=True, kw_only=True):
    """A task's output as it is sent, and what the receipt tells of it: `file` lies in the workspace, named from its root.

    `score`: of a test task. `phases`: seconds by name, until here.
    """

    output: Output
    kind: BlobKind
    file: str
    score: str | None
    phases: dict[str, float]


def pack_output(context: Context, results: Results, space: Workspace, phases: Phases) -> Packed:
    """The task's one output, packed and named by its digest.

    A learn task leaves `model` (a tar), a test task `performance.json`, a predict task `pred/<dataset id>`.
    Raises: BadOutput.
    """
    file, name, kind, digest = prepare(context.task.kind, context.task.dataset.id, results, space)
    return Packed(
        output=Output(name=name, digest=digest, size=file.stat().st_size),
        kind=kind,
        file=str(file.relative_to(space.root)),
        score=None if results.performance is None else repr(results.performance.perf),
        phases=phases.seconds,
    )


def publish(packed: Packed, space: Workspace, host: Host) -> None:
    """Put the output on this node's own storage. The same again is fine. Raises: StorageUnavailable, DigestMismatch."""
    host.ports.storage.put_blob(packed.output.digest, packed.kind, space.root / packed.file)


def prepare(
    task: TaskKind, dataset: str, results: Results, space: Workspace
) -> tuple[Path, str, BlobKind, Digest]:
    """(file, name of the output, kind of blob, digest) of what the task's runs left, as it is sent. Raises: BadOutput."""
    if results.model is not None:
        if not results.model_files:
            raise BadOutput("the training left no model: no file under /data/model")
        content_bytes = sum((results.model / name).stat().st_size for name in results.model_files)
        space.keep_only(packed_bytes_needed(content_bytes, len(results.model_files)))
        archive = space.private("model_out.tar")
        archive.unlink(missing_ok=True)  # half packed by a worker before this one
        return archive, "model", BlobKind.MODEL, pack(results.model, results.model_files, archive)
    if results.performance is not None:
        document = space.private("performance.json")
        document.write_bytes(encode(results.performance))
        return document, "performance.json", BlobKind.PERFORMANCE, digest_of(document.read_bytes())
    if results.prediction is not None:
        name = f"pred/{dataset}"
        return results.prediction, name, BlobKind.PREDICTION, file_digest(results.prediction)
    raise BadOutput(f"a {task} task left nothing")
