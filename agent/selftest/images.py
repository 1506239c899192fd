"""Container images from what is installed here: deterministic OCI archives, made without any registry.

An image is the running interpreter with its standard library and shared libraries, optionally some installed packages, and
a few program files on top. The big layers are kept in a cache folder and shared.
"""

import hashlib
import importlib.metadata
import importlib.util
import io
import json
import marshal
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tarfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from msgspec import Struct

from agent.domain.ids import Digest, digest_of

PACKAGES_ROOT = "/opt/packages"
PROGRAM_ROOT = "/opt/program"
PYTHON = "/usr/bin/python3"

ENV = {
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",  # many small fits: one thread each is quicker, and the same everywhere
    "PATH": "/usr/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPATH": PACKAGES_ROOT,
}

# Parts of the standard library and of packages that no program of ours imports; an image is copied for every id map.
NOT_IN_STDLIB = re.compile(
    r"(site-packages|dist-packages|test|tests|idlelib|idle_test|tkinter|turtledemo|ensurepip|lib2to3|pydoc_data"
    r"|distutils|curses|config-[^/]*|sitecustomize\.py|EXTERNALLY-MANAGED|__pycache__)"
)
NOT_IN_PACKAGES = re.compile(
    r"(.*/)?(tests?|__pycache__|include|_examples)/.*"
    r"|.*\.(pyi|pxd|pyx|tp|c|h|cpp|hpp|a|f|f90|pyc|build|src)"
    r"|.*\.dist-info/(?!METADATA$).*"
    r"|sklearn/datasets/(data|descr|images)/.*"
)
LAYER_FORMAT = "6"  # part of a cached layer's key: raise it when the code below changes what a layer holds

_OCI = "application/vnd.oci.image"


class Layer(Struct, frozen=True):
    """An uncompressed layer on disk: its file, digest of its bytes, and size."""

    path: Path
    digest: Digest
    size_bytes: int


class Entry(Struct, frozen=True):
    """One thing in a layer: bytes or a file of this host, or a link when `link` is set, or else a folder."""

    content: bytes | Path | None = None
    link: str | None = None
    is_executable: bool = False
    is_open: bool = False  # for everybody to write: a folder as /tmp is, or a file
    is_set_id: bool = False  # a program that would run as its owner, root


# ------------------------------------------------------------------ layers


def python_layer(cache: Path) -> Layer:
    """The running interpreter, its standard library and every shared library they need, at the paths they have here."""
    return _cached_layer(cache, _python_entries())


def packages_layer(
    cache: Path, distributions: Sequence[str], *, site: Path | None = None, has_sources: bool = False
) -> Layer:
    """These installed distributions with what they require, below PACKAGES_ROOT: libraries and byte code, no sources.

    `site`: the packages folder of another environment of this very interpreter. `has_sources`: for packages that read their
    own source, as torch does. Raises: importlib.metadata.PackageNotFoundError when one is not installed.
    """
    return _cached_layer(cache, _package_entries(distributions, site), has_sources=has_sources)


def program_layer(cache: Path, files: Mapping[str, bytes | Entry]) -> Layer:
    """Small files by absolute path, or whatever else an Entry is."""
    return _cached_layer(
        cache,
        {
            path.lstrip("/"): content if isinstance(content, Entry) else Entry(content)
            for path, content in files.items()
        },
    )


def command_layer(cache: Path, program: Path) -> Layer:
    """One program of this host and every shared library it needs, at the paths they have here, and no more."""
    entries = {_inside(program): Entry(program.resolve(), is_executable=True)}
    entries |= _shared_libraries([program], below=program)
    return _cached_layer(cache, entries | _empty_folders() | _usr_merge())


def interpreter() -> Path:
    """The program of the running interpreter, outside any virtual environment."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def _python_entries() -> dict[str, Entry]:
    executable = interpreter()
    stdlib = Path(sysconfig.get_path("stdlib")).resolve()
    entries = {_inside(executable): Entry(executable, is_executable=True)}
    if str(executable) != PYTHON:
        entries[PYTHON.lstrip("/")] = Entry(link=str(executable))
    for path in _files_below(stdlib, NOT_IN_STDLIB):
        entries[_inside(path)] = Entry(path.resolve())
    binaries = [executable, *(e.content for e in entries.values() if _is_library(e.content))]
    entries |= _shared_libraries(binaries, below=stdlib)
    return entries | _empty_folders() | _usr_merge()


def _empty_folders() -> dict[str, Entry]:
    """What runs are mounted on."""
    closed = ("data", "dev", "etc", "hidden_data", "proc", "run", "submission_data", "sys")
    return {name: Entry() for name in closed} | {"tmp": Entry(is_open=True)}


def _package_entries(distributions: Sequence[str], site: Path | None = None) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for distribution in _with_requirements(distributions, site):
        for file in distribution.files or ():
            if ".." not in file.parts and not NOT_IN_PACKAGES.fullmatch(file.as_posix()):
                entries[f"{PACKAGES_ROOT.lstrip('/')}/{file.as_posix()}"] = Entry(Path(str(file.locate())))
    binaries = [entry.content for entry in entries.values() if _is_library(entry.content)]
    root = Path(str(_distribution(distributions[0], site).locate_file(""))).resolve()
    return entries | _shared_libraries(binaries, below=root)


def _files_below(root: Path, pruned: re.Pattern[str]) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not pruned.fullmatch(name)]
        yield from (Path(folder, name) for name in names if not pruned.fullmatch(name))


def _with_requirements(
    names: Iterable[str], site: Path | None = None
) -> list[importlib.metadata.Distribution]:
    """The distributions of these names and of everything they require here; extras are left out.

    What is required under a condition (another system, an older Python) may be missing.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = [(name, False) for name in names]
    while wanted:
        name, is_conditional = wanted.pop()
        name = re.sub(r"[-_.]+", "-", name).lower()
        if name in found:
            continue
        try:
            found[name] = _distribution(name, site)
        except importlib.metadata.PackageNotFoundError:
            if is_conditional:
                continue
            raise
        for requirement in found[name].requires or ():
            if "extra ==" not in requirement and (match := re.match(r"[A-Za-z0-9._-]+", requirement)):
                wanted.append((match[0], ";" in requirement))
    return [found[name] for name in sorted(found)]


def _distribution(name: str, site: Path | None) -> importlib.metadata.Distribution:
    """An installed distribution of the running environment, or of the one whose packages lie in `site`."""
    if site is None:
        return importlib.metadata.distribution(name)
    for distribution in importlib.metadata.distributions(name=name, path=[str(site)]):
        return distribution
    raise importlib.metadata.PackageNotFoundError(name)


def _is_library(content: bytes | Path | None) -> bool:
    return isinstance(content, Path) and ".so" in content.suffixes


def _shared_libraries(binaries: Iterable[bytes | Path | None], below: Path) -> dict[str, Entry]:
    """What the loader of this host would load for these files, but for libraries that lie below `below` anyway."""
    command = ["ldd", *map(str, binaries)]  # by name: where it lies is the distribution's business
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    paths = {Path(path) for path in re.findall(r"(?:=> |^\t)(/\S+) \(0x", told, flags=re.MULTILINE)}
    libraries = (path.parent.resolve() / path.name for path in paths)
    return {
        _inside(path): Entry(path.resolve(), is_executable=True)
        for path in libraries
        if not path.is_relative_to(below)
    }


def _usr_merge() -> dict[str, Entry]:
    """/lib and its like as links, where this host has them as links."""
    links = [Path(name) for name in ("/bin", "/lib", "/lib64", "/sbin")]
    return {_inside(path): Entry(link=str(path.readlink())) for path in links if path.is_symlink()}


def _with_byte_code(entries: Mapping[str, Entry], has_sources: bool) -> dict[str, Entry]:
    """The entries with every module's byte code, beside its source or in its place."""
    found = dict(entries)
    for name, entry in entries.items():
        if not name.endswith(".py") or not isinstance(entry.content, Path):
            continue
        code = _byte_code(name, entry.content.read_bytes())
        if code is None:  # a template, or a file for a newer Python
            continue
        path = PurePosixPath(name)
        if has_sources:
            tag = sys.implementation.cache_tag
            found[str(path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc")] = Entry(code)
        else:
            del found[name]
            found[str(path.with_suffix(".pyc"))] = Entry(code)
    return found


def _byte_code(name: str, source: bytes) -> bytes | None:
    """What the interpreter takes without looking at the source's time; None when this one cannot compile it.

    marshal's version 2 writes no references, which depend on the state of this process.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            code = compile(source, f"/{name}", "exec", dont_inherit=True)
    except SyntaxError:
        return None
    head = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source)
    return head + marshal.dumps(code, 2)


def _inside(path: Path) -> str:
    return str(path).lstrip("/")


# ------------------------------------------------------------------ files


def _cached_layer(cache: Path, entries: Mapping[str, Entry], *, has_sources: bool = True) -> Layer:
    """The layer of these entries with their byte code, from the cache when the same files made it before."""
    cache.mkdir(parents=True, exist_ok=True)
    note = cache / f"{_key(entries, has_sources)}.json"
    if note.exists():
        layer = Layer(**{**json.loads(note.read_bytes()), "path": note.with_suffix(".tar")})
        if layer.path.exists():
            return layer
    part = note.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        digest = _write_tar(file, _with_byte_code(entries, has_sources))
    layer = Layer(note.with_suffix(".tar"), digest, part.stat().st_size)
    os.replace(part, layer.path)
    part.write_text(json.dumps({"digest": layer.digest, "size_bytes": layer.size_bytes}))
    os.replace(part, note)
    return layer


def _key(entries: Mapping[str, Entry], has_sources: bool) -> str:
    lines = [LAYER_FORMAT, sys.version, str(has_sources)]
    for name, entry in sorted(entries.items()):
        content = entry.content
        if isinstance(content, Path):
            about = content.stat()
            lines.append(
                f"{name} {about.st_size} {about.st_mtime_ns} {entry.is_executable} {entry.is_set_id}"
            )
        else:
            lines.append(f"{name} {hashlib.sha256(content or b'').hexdigest()} {entry.link} {entry.is_open}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class _Hashing(io.RawIOBase):
    """A file for writing that hashes what goes through."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.hash = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        block = bytes(data)  # type: ignore[call-overload]
        self.hash.update(block)
        return self.file.write(block)


def _write_tar(file: IO[bytes], entries: Mapping[str, Entry]) -> Digest:
    """Write the entries in order, owned by root, without times. Gives the digest of what was written."""
    out = _Hashing(file)
    folders = {str(parent) for name in entries for parent in PurePosixPath(name).parents} - {"."}
    every = {name: Entry() for name in folders} | dict(entries)
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT, bufsize=1 << 20) as tar:
        for name in sorted(every):
            _add(tar, name, every[name])
    return Digest(f"sha256:{out.hash.hexdigest()}")


def _add(tar: tarfile.TarFile, name: str, entry: Entry) -> None:
    info = tarfile.TarInfo(name)
    info.mode = 0o4755 if entry.is_set_id else 0o755 if entry.is_executable else 0o644
    if entry.is_open:
        info.mode = 0o666
    match entry.content:
        case None if entry.link is not None:
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
            tar.addfile(info)
        case None:
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if entry.is_open else 0o755
            tar.addfile(info)
        case bytes() as content:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        case Path() as path:
            info.size = path.stat().st_size
            with path.open("rb") as source:
                tar.addfile(info, source)


# ------------------------------------------------------------------ images


def build_image(
    target: Path,
    *,
    layers: Sequence[Layer],
    entrypoint: Sequence[str],
    env: Mapping[str, str] | None = None,
    raw_env: Sequence[str] = (),
) -> Digest:
    """Write an OCI archive of these layers to `target`. Gives the digest of the archive's bytes.

    `raw_env`: entries of Env as they are, for images that shall be refused.
    """
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    config = _json(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Entrypoint": list(entrypoint),
                "Env": [*(f"{key}={value}" for key, value in sorted((env or {}).items())), *raw_env],
                "User": "1000:1000",
                "WorkingDir": "/data",
            },
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}.manifest.v1+json",
            "config": _descriptor(f"{_OCI}.config.v1+json", digest_of(config), len(config)),
            "layers": [
                _descriptor(f"{_OCI}.layer.v1.tar", layer.digest, layer.size_bytes) for layer in layers
            ],
        }
    )
    index = _json(
        {
            "schemaVersion": 2,
            "manifests": [_descriptor(f"{_OCI}.manifest.v1+json", digest_of(manifest), len(manifest))],
        }
    )
    blobs = {_blob(digest_of(content)): Entry(content) for content in (config, manifest)}
    blobs |= {_blob(layer.digest): Entry(layer.path) for layer in layers}
    whole = blobs | {"index.json": Entry(index), "oci-layout": Entry(b'{"imageLayoutVersion":"1.0.0"}')}
    note = target.with_name(f"{target.name}.note")
    if target.exists() and note.exists() and note.read_text().startswith(digest_of(manifest)):
        return Digest(note.read_text().split()[1])
    note.unlink(missing_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        digest = _write_tar(file, whole)
    os.replace(part, target)
    note.write_text(f"{digest_of(manifest)} {digest}")  # the next call for the same content writes nothing
    return digest


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _descriptor(media_type: str, digest: Digest, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _blob(digest: Digest) -> str:
    return digest.replace("sha256:", "blobs/sha256/")
