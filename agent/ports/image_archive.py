"""Image archives are read before they are loaded: what is in them, and whether an engine may see them at all.

OCI archives and docker-archives (`podman save`). Everything is recomputed from the bytes: each digest from the index down to
the layers' content. Nothing is unpacked. How layers are judged is `image_layers.py`; what an engine
is sent, `image_parts.py`.
Source: docs/contracts/container.md, "Which image archives are loaded".
"""

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import Struct

from agent.domain.ids import Digest, digest_from_hex, digest_of, hex_of, parse_digest
from agent.domain.prepared import prepared
from agent.domain.strict_json import encode, parse
from agent.domain.strict_tar import BadTar, Kind, Member, StrictTar
from agent.errors import BadImage, OrderError
from agent.ports.image_layers import MAX_LAYERS, Budget, Judged, Readable, check_layer
from agent.ports.image_parts import Content, Part

MAX_ARCHIVE_ENTRIES = 1000
MAX_DOCUMENT_BYTES = 1 << 20
BLOCK_BYTES = 1 << 20

LAYER_TYPES = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    }
)
MANIFEST_TYPES = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
# Annotations and labels that an engine or a runtime obeys (a checkpoint, hooks, another handler).
OBEYED = ("run.oci.", "io.podman.", "io.containers.", "io.kubernetes.cri-o.")
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


T = TypeVar("T")


class ImageLayer(Struct, frozen=True):
    """One layer that passed: where its bytes lie in the archive, and what was found in them."""

    content: Member
    judged: Judged


class ImageArchive(Struct, frozen=True, kw_only=True):
    """What an archive holds that passed: the image's id is the digest of its config."""

    image_id: Digest
    entrypoint: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    size_bytes: int  # of all layers' content, unpacked
    platform: str  # os/architecture
    labels: tuple[tuple[str, str], ...]
    layers: tuple[ImageLayer, ...]  # from the lowest up
    parts: tuple[Part, ...]  # all that an engine needs, every byte of it judged


# The documents inside, with the names that OCI and Docker gave their fields.


class _Descriptor(Struct, frozen=True):
    mediaType: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    urls: list[str] | None = None


class _Index(Struct, frozen=True):
    manifests: list[_Descriptor]
    annotations: dict[str, str] | None = None


class _Manifest(Struct, frozen=True):
    config: _Descriptor
    layers: list[_Descriptor]
    annotations: dict[str, str] | None = None


class _DockerManifest(Struct, frozen=True):
    Config: str
    Layers: list[str]


class _RunConfig(Struct, frozen=True):
    Entrypoint: list[str] | None = None
    Env: list[str] | None = None
    Labels: dict[str, str] | None = None


class _RootFs(Struct, frozen=True):
    type: str
    diff_ids: list[str]


class _Config(Struct, frozen=True):
    architecture: str
    os: str
    rootfs: _RootFs
    config: _RunConfig = _RunConfig()


class _Layer(Struct, frozen=True):
    """A layer's place in the archive; `digest` is that of its bytes as they lie there, where the manifest names one."""

    member: str
    digest: Digest | None
    sent_as: str


def inspect(archive: Path, digest: Digest, budget: Budget | None = None) -> ImageArchive:
    """What the archive holds, after everything in it was found fit to load. Its own digest, `digest`, the caller has checked.

    `budget`: a fresh one, to look on while layers are read. Raises: BadImage naming what is refused.
    """
    try:
        with archive.open("rb") as file:
            return _inspect(_members(file, archive.stat().st_size), file, budget or Budget())
    except (BadTar, OSError, ValueError) as cause:
        if isinstance(cause, FileNotFoundError | PermissionError):
            raise
        raise BadImage(f"image {hex_of(digest)[:12]} is no readable archive: {cause}") from cause


def _inspect(members: Mapping[str, Member], file: IO[bytes], budget: Budget) -> ImageArchive:
    is_oci, is_docker = "index.json" in members, "manifest.json" in members
    if not (is_oci or is_docker):
        raise BadImage("neither index.json nor manifest.json is in the archive: it is no image archive")
    reader = _Reader(members, file)
    read = [reader.oci] * is_oci + [reader.docker] * is_docker
    found = [how() for how in read]
    if len({config_digest for config_digest, _, _ in found}) > 1:
        raise BadImage("index.json and manifest.json name two different images")
    config_digest, layers, papers = found[0]  # only these layers are judged, and only these papers are sent
    config = reader.config(config_digest)
    judged = reader.check_layers(layers, [_digest(text) for text in config.rootfs.diff_ids], budget)
    return ImageArchive(
        image_id=config_digest,
        entrypoint=_entrypoint(config),
        env=_env(config),
        size_bytes=sum(layer.judged.size_bytes for layer in judged),
        layers=judged,
        platform=f"{config.os}/{config.architecture}",
        labels=tuple(sorted((config.config.Labels or {}).items())),
        parts=(*papers, *reader.layer_parts(layers)),
    )


def _members(file: IO[bytes], size_bytes: int) -> dict[str, Member]:
    """The regular files of the archive by name."""
    members: dict[str, Member] = {}
    tar = StrictTar(file, limit_bytes=size_bytes, kinds={Kind.FILE, Kind.FOLDER})
    for count, member in enumerate(tar, 1):
        if count > MAX_ARCHIVE_ENTRIES:
            raise BadImage(f"the archive has more than {MAX_ARCHIVE_ENTRIES} entries")
        if member.kind is Kind.FOLDER:
            continue
        if member.name in members:
            raise BadImage(f"{member.name!r:.120} stands twice in the archive")
        members[member.name] = member
    return members


class _Reader:
    """The documents and layers of one archive, found by digest."""

    def __init__(self, members: Mapping[str, Member], file: IO[bytes]) -> None:
        self._members, self._file = members, file
        self._configs: dict[Digest, bytes] = {}

    def oci(self) -> tuple[Digest, list[_Layer], list[Part]]:
        """(config digest, layers, papers to send) as index.json names them."""
        index = _convert(self._document("index.json"), _Index, "index.json")
        if len(index.manifests) != 1:
            raise BadImage(f"the archive holds {len(index.manifests)} images, not exactly one")
        head = index.manifests[0]
        if head.mediaType not in MANIFEST_TYPES:
            raise BadImage(f"index.json points at {head.mediaType!r:.80}, which is no image manifest")
        content = self._blob(head)
        manifest = _convert(content, _Manifest, "the manifest")
        for descriptor in (head, manifest.config, *manifest.layers):
            _check_annotations(descriptor.annotations, "annotation")
            if descriptor.urls:
                raise BadImage("a part of the image is to be fetched from elsewhere")
        _check_annotations(index.annotations, "annotation")
        _check_annotations(manifest.annotations, "annotation")
        for layer in manifest.layers:
            if layer.mediaType not in LAYER_TYPES:
                raise BadImage(f"a layer is {layer.mediaType!r:.80}: only tar and tar+gzip are read")
        config_digest = _digest(manifest.config.digest)
        self._configs[config_digest] = self._blob(manifest.config)
        layers = [
            _Layer(_blob_name(_digest(one.digest)), _digest(one.digest), _blob_name(_digest(one.digest)))
            for one in manifest.layers
        ]
        index_anew = {
            "schemaVersion": 2,
            "manifests": [{"mediaType": head.mediaType, "digest": head.digest, "size": head.size}],
        }
        papers = [
            Part("oci-layout", encode({"imageLayoutVersion": "1.0.0"})),
            Part("index.json", encode(index_anew)),
            Part(_blob_name(_digest(head.digest)), content),
            Part(_blob_name(config_digest), self._configs[config_digest]),
        ]
        return config_digest, layers, papers

    def docker(self) -> tuple[Digest, list[_Layer], list[Part]]:
        """(config digest, layers, papers to send) as manifest.json names them."""
        manifests = _convert(self._document("manifest.json"), list[_DockerManifest], "manifest.json")
        if len(manifests) != 1:
            raise BadImage(f"the archive holds {len(manifests)} images, not exactly one")
        content = self._document(manifests[0].Config)
        config_digest = digest_of(content)
        self._configs[config_digest] = content
        numbers = {member: number for number, member in enumerate(dict.fromkeys(manifests[0].Layers))}
        layers = [_Layer(member, None, f"{numbers[member]}.tar") for member in manifests[0].Layers]
        manifest_anew = {
            "Config": f"{hex_of(config_digest)}.json",
            "RepoTags": [],
            "Layers": [layer.sent_as for layer in layers],
        }
        papers = [
            Part("manifest.json", encode([manifest_anew])),
            Part(f"{hex_of(config_digest)}.json", content),
        ]
        return config_digest, layers, papers

    def config(self, digest: Digest) -> _Config:
        """The image's config, checked but for entry point and environment."""
        config = _convert(self._configs[digest], _Config, "the image's config")
        here = MACHINES.get(platform.machine(), platform.machine())
        if (config.os, config.architecture) != ("linux", here):
            raise BadImage(f"the image is for {config.os}/{config.architecture}, this host is linux/{here}")
        if config.rootfs.type != "layers":
            raise BadImage(f"the image's root is {config.rootfs.type!r:.40}, not layers")
        _check_annotations(config.config.Labels, "label")
        return config

    def check_layers(
        self, layers: list[_Layer], diff_ids: list[Digest], budget: Budget
    ) -> tuple[ImageLayer, ...]:
        """Judge every layer and compare it with what config and manifest say."""
        if len(layers) != len(diff_ids):
            raise BadImage(f"the manifest has {len(layers)} layers, the config {len(diff_ids)}")
        if not 0 < len(layers) <= MAX_LAYERS:
            raise BadImage(f"the image has {len(layers)} layers, 1 to {MAX_LAYERS} are read")
        found = []
        for layer, diff_id in zip(layers, diff_ids, strict=True):
            content = self._member(layer.member)
            raw = _HashingFile(Content(self._file, content))
            judged = check_layer(raw, budget)
            if judged.diff_id != diff_id:
                raise BadImage(f"layer {layer.member!r:.100} is not what the config names")
            if layer.digest is not None and raw.finish() != layer.digest:
                raise BadImage(f"layer {layer.member!r:.100} is not what the manifest names")
            found.append(ImageLayer(content, judged))
        return tuple(found)

    def layer_parts(self, layers: list[_Layer]) -> list[Part]:
        """The layers' files, each once."""
        names = {layer.sent_as: layer.member for layer in layers}
        return [Part(sent_as, self._members[member]) for sent_as, member in names.items()]

    def _blob(self, descriptor: _Descriptor) -> bytes:
        digest = _digest(descriptor.digest)
        content = self._document(_blob_name(digest))
        if digest_of(content) != digest or len(content) != descriptor.size:
            raise BadImage(f"blob {digest[:19]} is not what its descriptor names")
        return content

    def _document(self, name: str) -> bytes:
        if self._member(name).size_bytes > MAX_DOCUMENT_BYTES:
            raise BadImage(f"{name!r:.100} is over {MAX_DOCUMENT_BYTES} bytes")
        content = Content(self._file, self._member(name))
        return b"".join(iter(content.read, b""))

    def _member(self, name: str) -> Member:
        member = self._members.get(name)
        if member is None:
            raise BadImage(f"{name!r:.100} is missing in the archive")
        return member


class _HashingFile:
    """Reads a file and hashes what was read."""

    def __init__(self, file: Readable) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(BLOCK_BYTES if size < 0 else size)
        self._hash.update(block)
        return block

    def finish(self) -> Digest:
        """Read the rest; the digest of all."""
        while self.read(BLOCK_BYTES):
            pass
        return digest_from_hex(self._hash.hexdigest())


def _convert(content: bytes, kind: type[T], what: str) -> T:
    try:
        tree = parse(content, limit_bytes=MAX_DOCUMENT_BYTES, what=what)
        _check_spelling(tree, kind, what)
        return msgspec.convert(tree, prepared(kind))
    except (OrderError, msgspec.ValidationError) as cause:
        raise BadImage(f"{what}: {cause}") from cause


def _check_spelling(tree: Any, kind: Any, what: str) -> None:
    """Refuse keys that only the engine takes for a field: for Go's encoding/json, "Layers" is "layers", and the last counts."""
    if get_origin(kind) is list and isinstance(tree, list):
        for item in tree:
            _check_spelling(item, get_args(kind)[0], what)
    elif isinstance(tree, dict) and (struct := _struct_in(kind)) is not None:
        fields = {field.name: field.type for field in msgspec.structs.fields(struct)}
        folded = {name.casefold() for name in fields}
        for key, value in tree.items():
            if key in fields:
                _check_spelling(value, fields[key], what)
            elif key.casefold() in folded:
                raise BadImage(f"{what}: the key {key!r:.80} is another's, spelt otherwise")


def _struct_in(kind: Any) -> type[Struct] | None:
    return kind if isinstance(kind, type) and issubclass(kind, Struct) else None


def _digest(text: str) -> Digest:
    try:
        return parse_digest(text)
    except ValueError as cause:
        raise BadImage(f"{text!r:.80} is no sha256 digest") from cause


def _blob_name(digest: Digest) -> str:
    return f"blobs/sha256/{hex_of(digest)}"


def _check_annotations(notes: Mapping[str, Any] | None, what: str) -> None:
    for key in notes or {}:
        if key.lower().startswith(OBEYED):
            raise BadImage(f"{what} {key!r:.100} would be obeyed by the engine")


def _entrypoint(config: _Config) -> tuple[str, ...]:
    words = tuple(config.config.Entrypoint or ())
    if not words:
        raise BadImage("the image has no ENTRYPOINT: the contract's arguments are its CMD")
    if any("\0" in word for word in words):
        raise BadImage("the image's ENTRYPOINT holds a zero byte")
    return words


def _env(config: _Config) -> tuple[tuple[str, str], ...]:
    pairs: dict[str, str] = {}
    for entry in config.config.Env or []:
        key, equals, value = entry.partition("=")
        if not equals or not key.isidentifier() or not key.isascii() or "\0" in value:
            raise BadImage(f"the image's Env entry {entry!r:.80} is not KEY=VALUE")
        pairs[key] = value  # as the engine does: the last one counts
    return tuple(sorted(pairs.items()))
