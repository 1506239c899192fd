"""Image archives that are written here: layers on disk and a config, as an OCI archive. The same bytes for the same image."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from msgspec import Struct

from agent.domain.ids import Digest, digest_from_hex, digest_of, hex_of
from agent.domain.strict_tar import Kind, Member
from agent.ports.image_layers import HIDES, LayerTar, Readable
from agent.ports.image_names import folders_above
from agent.ports.image_parts import Content

BLOCK_BYTES = 1 << 20
_TYPES = {
    Kind.FILE: tarfile.REGTYPE,
    Kind.FOLDER: tarfile.DIRTYPE,
    Kind.SYMBOLIC_LINK: tarfile.SYMTYPE,
    Kind.HARD_LINK: tarfile.LNKTYPE,
}
_OCI = "application/vnd.oci.image"


class StoredLayer(Struct, frozen=True):
    """A layer as it lies in a file, packed or not; `digest` is that of these bytes, `diff_id` of the tar they are."""

    file: Path
    offset: int
    size_bytes: int
    digest: Digest
    diff_id: Digest

    @property
    def media_type(self) -> str:
        return f"{_OCI}.layer.v1.tar{'' if self.digest == self.diff_id else '+gzip'}"

    @property
    def content(self) -> Member:
        """Where it lies, for who reads it."""
        return Member("layer", Kind.FILE, self.size_bytes, "", self.offset)


class LayerEntry(Struct, frozen=True):
    """One thing of a new layer: a folder, a link when `link` is set, a file when `content` is."""

    mode: int = 0o755
    mtime_s: int = 0
    link: str | None = None
    content: Member | None = None


def write_layer(target: Path, entries: Mapping[str, LayerEntry], source: IO[bytes]) -> StoredLayer:
    """A plain layer of these entries, which all belong to root; contents are read from `source`."""
    with target.open("xb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in sorted(entries):
            entry = entries[name]
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = (
                entry.mode & (0o777 if entry.content else 0o1777),
                min(max(entry.mtime_s, 0), 1 << 33),
            )
            if entry.content is not None:
                info.size = entry.content.size_bytes
                tar.addfile(info, io.BufferedReader(_Raw(Content(source, entry.content)), BLOCK_BYTES))
                continue
            info.type = tarfile.DIRTYPE if entry.link is None else tarfile.SYMTYPE
            info.linkname = entry.link or ""
            tar.addfile(info)
    return _plain_layer(target)


def rewrite_layer(
    target: Path, tar: LayerTar, gone: Collection[str], left_out: Collection[str]
) -> StoredLayer:
    """The layer without its attributes and what is `left_out`, and with a whiteout for what else is `gone`."""
    names: set[str] = set()
    with target.open("xb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as out:
        for member in tar:
            names.update((*folders_above(member.name), member.name))
            if member.name in left_out:
                continue
            info = tarfile.TarInfo(member.name)
            info.mode, info.uid, info.gid = member.mode, member.uid, member.gid
            info.type, info.linkname = _TYPES[member.kind], member.link
            info.size, info.mtime = member.size_bytes, min(max(member.mtime_s, 0), 1 << 33)
            out.addfile(info, io.BufferedReader(_Raw(tar), BLOCK_BYTES) if info.size else None)
        for name in sorted(gone):
            folder, slash, last = name.rpartition("/")
            whiteout = f"{folder}{slash}{HIDES}{last}"
            if names.isdisjoint((name, whiteout)):  # else the layer says it by itself
                out.addfile(tarfile.TarInfo(whiteout))
    return _plain_layer(target)


def _plain_layer(file: Path) -> StoredLayer:
    with file.open("rb") as written:
        digest = digest_from_hex(hashlib.file_digest(written, "sha256").hexdigest())
    return StoredLayer(file, 0, file.stat().st_size, digest, digest)


def stored_layer(file: Path, content: Member, diff_id: Digest) -> StoredLayer:
    """A layer that lies in another archive."""
    found = hashlib.sha256()
    with file.open("rb") as source:
        for block in iter(Content(source, content).read, b""):
            found.update(block)
    return StoredLayer(file, content.offset, content.size_bytes, digest_from_hex(found.hexdigest()), diff_id)


def write_archive(
    target: Path, layers: Sequence[StoredLayer], architecture: str, run_config: Mapping[str, Any]
) -> Digest:
    """An OCI archive of these layers, which appears whole. Gives its digest."""
    config = _json(
        {
            "architecture": architecture,
            "os": "linux",
            "config": run_config,
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}.manifest.v1+json",
            "config": _descriptor(f"{_OCI}.config.v1+json", digest_of(config), len(config)),
            "layers": [_descriptor(layer.media_type, layer.digest, layer.size_bytes) for layer in layers],
        }
    )
    head = _descriptor(f"{_OCI}.manifest.v1+json", digest_of(manifest), len(manifest))
    papers = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": [head]}),
        _blob(digest_of(manifest)): manifest,
        _blob(digest_of(config)): config,
    }
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
                _write(tar, papers, layers)
            file.flush()
            os.fsync(file.fileno())
        with part.open("rb") as file:
            digest = digest_from_hex(hashlib.file_digest(file, "sha256").hexdigest())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return digest


def _write(tar: tarfile.TarFile, papers: Mapping[str, bytes], layers: Sequence[StoredLayer]) -> None:
    for name, content in papers.items():
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    for layer in {layer.digest: layer for layer in layers}.values():
        info = tarfile.TarInfo(_blob(layer.digest))
        info.size = layer.size_bytes
        with layer.file.open("rb") as source:
            tar.addfile(info, io.BufferedReader(_Raw(Content(source, layer.content)), BLOCK_BYTES))


class _Raw(io.RawIOBase):
    """A member's content as a file."""

    def __init__(self, content: Readable) -> None:
        self._content = content

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        block = self._content.read(len(view))
        view[: len(block)] = block
        return len(block)


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _descriptor(media_type: str, digest: Digest, size_bytes: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size_bytes}


def _blob(digest: Digest) -> str:
    return f"blobs/sha256/{hex_of(digest)}"
