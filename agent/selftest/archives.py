"""Archives that must be refused, byte by byte as an attacker would make them: images and models."""

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

HERE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
_OCI = "application/vnd.oci.image"
_TAR = f"{_OCI}.layer.v1.tar"

Entry = tarfile.TarInfo | tuple[str, bytes]


def tar(*entries: Entry) -> bytes:
    """A tar of files (name, content) and of anything else."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.GNU_FORMAT) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            name, content = entry
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    """An entry that is no file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    if kind == tarfile.CHRTYPE:
        info.devmajor, info.devminor = 1, 1  # /dev/mem
    return info


def claiming(name: str, size: int) -> bytes:
    """The header of a file that claims this size, and nothing behind it."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(format=tarfile.GNU_FORMAT) + bytes(1024)


def sparse() -> bytes:
    """A file of 1 TiB with nothing in it, in GNU's PAX form."""
    info = tarfile.TarInfo("model")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "model",
        "GNU.sparse.realsize": str(1 << 40),
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    return out.getvalue()


# ------------------------------------------------------------------ images


def image(
    layers: Iterable[bytes] = (),
    *,
    env: Iterable[str] = ("PATH=/bin",),
    annotations: Mapping[str, str] | None = None,
    said: Callable[[bytes], bytes] = lambda layer: layer,
) -> bytes:
    """An OCI archive. `said`: what the config says of each layer's content, where that is another."""
    blobs = [*layers] or [tar(("bin/program", b"#!"))]
    config = _json(
        {
            "architecture": HERE,
            "os": "linux",
            "config": {"Entrypoint": ["/bin/program"], "Env": [*env]},
            "rootfs": {"type": "layers", "diff_ids": [_sha(_plain(said(blob))) for blob in blobs]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "config": _part(config, f"{_OCI}.config.v1+json"),
            "layers": [_part(blob, _TAR) for blob in blobs],
            **({"annotations": dict(annotations)} if annotations else {}),
        }
    )
    index = _json({"schemaVersion": 2, "manifests": [_part(manifest, f"{_OCI}.manifest.v1+json")]})
    files = [(_sha(blob).replace("sha256:", "blobs/sha256/"), blob) for blob in (config, manifest, *blobs)]
    return tar(("index.json", index), ("oci-layout", b"{}"), *files)


def _plain(layer: bytes) -> bytes:
    return gzip.decompress(layer) if layer.startswith(b"\x1f\x8b") else layer


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


def _sha(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _part(content: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _sha(content), "size": len(content)}


IMAGES: dict[str, Callable[[], bytes]] = {
    "image-traversal": lambda: image([tar(("../../etc/cron.d/x", b"x"))]),
    "image-absolute": lambda: image([tar(("/etc/cron.d/x", b"x"))]),
    "image-link-at-data": lambda: image([tar(special("data", tarfile.SYMTYPE, "/etc"))]),
    "image-through-link": lambda: image(
        [tar(special("usr", tarfile.SYMTYPE, "/proc/self/root/etc"), ("usr/passwd", b"x"))]
    ),
    "image-device": lambda: image([tar(special("dev/x", tarfile.CHRTYPE))]),
    "image-bomb": lambda: image([gzip.compress(claiming("bomb", 64 << 30))]),
    "image-env": lambda: image(env=["*"]),
    "image-annotation": lambda: image(annotations={"run.oci.hooks.stdout": "/x"}),
    "image-other-layer": lambda: image(said=lambda layer: layer + b"x"),
}

# ------------------------------------------------------------------ models

MODELS: dict[str, Callable[[], bytes]] = {
    "model-traversal": lambda: tar(("../../model", b"x")),
    "model-absolute": lambda: tar(("/tmp/model", b"x")),  # noqa: S108
    "model-link": lambda: tar(special("model", tarfile.SYMTYPE, "/etc/passwd")),
    "model-hard-link": lambda: tar(("model", b"x"), special("again", tarfile.LNKTYPE, "model")),
    "model-device": lambda: tar(special("model", tarfile.CHRTYPE)),
    "model-bomb": lambda: claiming("model", 1 << 40),
    "model-sparse": sparse,
    "model-twice": lambda: tar(("model", b"x"), ("model", b"y")),
    "model-files": lambda: tar(*((f"model-{number}", b"") for number in range(300))),
}
