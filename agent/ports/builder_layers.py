"""Builds images layer by layer: everything but RUN is done here, without any engine, from a context that is never unpacked.

A RUN is an image of what there is so far, run in the cage; what it changed is the next layer, and is judged as any other. So
no builder's daemon reads the Dockerfile, and nothing is ever fetched.
"""

import fnmatch
import os
import platform
import posixpath
import re
import shutil
import tempfile
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import assert_never

from agent.domain import dockerfile
from agent.domain.ceilings import Ceilings
from agent.domain.dockerfile import (
    Cmd,
    Copy,
    EntryPoint,
    Env,
    From,
    Instruction,
    Label,
    Run,
    User,
    WorkDir,
    value,
)
from agent.domain.ids import Digest
from agent.domain.strict_tar import Kind, Member
from agent.errors import BadBuild
from agent.ports.builder import FindBase, Steps
from agent.ports.image_archive import MACHINES, inspect
from agent.ports.image_context import Context, open_context
from agent.ports.image_layers import Budget, LayerTar, check_layer
from agent.ports.image_names import Names, folders_above
from agent.ports.image_parts import Content
from agent.ports.image_writing import (
    LayerEntry,
    StoredLayer,
    rewrite_layer,
    stored_layer,
    write_archive,
    write_layer,
)

LOG_TAIL = 400
BLOCK = 512  # bytes: what an entry takes in a layer beside its content
MAX_VALUES = (
    512 << 10
)  # characters of all variables together, and of all labels: the papers of an image are no larger
# What an engine puts into a container for itself; a step can change none of it.
OF_THE_ENGINE = frozenset(
    {"etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf", "run/.containerenv", "run/secrets"}
)
ARCHIVE_MAGICS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")
GUESTS = {"0": 0, "root": 0, "0:0": 0, "root:root": 0, "1000": 1000, "1000:1000": 1000}
OBVIOUS_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


class LayersBuilder:
    """Implements `Builder`. `work` is a folder on disk for what lies between; `limit_bytes` bounds a context."""

    def __init__(self, steps: Steps, work: Path, limit_bytes: int) -> None:
        self._steps, self._work, self._limit_bytes = steps, work, limit_bytes

    def build(
        self,
        context: Path,
        find_base: FindBase,
        target: Path,
        ceilings: Ceilings,
        accept_missing: frozenset[str] = frozenset(),
    ) -> Digest:
        """As the protocol says."""
        with (
            tempfile.TemporaryDirectory(prefix="build-", dir=self._work) as name,
            open_context(context, Path(name), self._limit_bytes) as opened,
        ):
            image = _Image(opened, Path(name), self._limit_bytes)
            for instruction in dockerfile.parse_dockerfile(opened.dockerfile):
                if isinstance(instruction, Run):
                    self._run(instruction, image, ceilings, accept_missing)
                else:
                    image.apply(instruction, find_base)
            whole = Path(name) / "whole.tar"
            digest = image.write(whole, image.entrypoint)
            inspect(whole, digest)
            _move(whole, target)
            return digest

    def _run(self, run: Run, image: "_Image", ceilings: Ceilings, accept_missing: frozenset[str]) -> None:
        before, after = image.work / "before.tar", image.work / f"after-{len(image.layers)}.tar"
        digest = image.write(before, run.args)
        outcome, gone = self._steps.run(
            before,
            digest,
            after,
            work_dir=image.work_dir,
            user=image.user,
            ceilings=ceilings,
            accept_missing=accept_missing,
        )
        if outcome.cause is not None:
            tail = outcome.log[-LOG_TAIL:].decode(errors="replace")
            raise BadBuild(f"RUN {' '.join(run.args)!r:.120} ended with {outcome.cause}: {tail!r}")
        image.take_last_layer(after, gone)
        before.unlink()


def _move(whole: Path, target: Path) -> None:
    """Into another file system perhaps; it appears whole."""
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(whole, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


class _Image:
    """An image being made."""

    def __init__(self, context: Context, work: Path, limit_bytes: int) -> None:
        self.context, self.work = context, work
        self._limit_bytes = self._left_bytes = limit_bytes  # of all that is copied
        self._in_order = sorted(context.members)
        self.layers: list[StoredLayer] = []
        self.names = Names()
        self.env: dict[str, str] = {}
        self.labels: dict[str, str] = {}
        self.work_dir, self.user = "/", 0
        self.entrypoint: tuple[str, ...] = ()
        self.cmd: tuple[str, ...] = ()

    def apply(self, instruction: Instruction, find_base: FindBase) -> None:
        """Everything but a RUN."""
        match instruction:
            case From(base=name):
                self._begin(name, find_base)
            case Copy():
                self._copy(instruction)
            case Env(pairs=pairs):
                self.env = self._with(self.env, pairs)
            case Label(pairs=pairs):
                self.labels = self._with(self.labels, pairs)
            case WorkDir(path=raw):
                self.work_dir = self._absolute(raw)
                self._add_folders(self.names.resolved(self.work_dir))
            case User(name=raw):
                name = value(raw, self.env)
                if name not in GUESTS:
                    raise BadBuild(
                        f"USER takes root and 1000: jobs run as 1000:1000 whatever it says: {name!r:.80}"
                    )
                self.user = GUESTS[name]
            case EntryPoint(args=args):
                self.entrypoint, self.cmd = args, ()
            case Cmd(args=args):
                self.cmd = args
            case Run():
                raise AssertionError("a RUN is the builder's")
            case _:
                assert_never(instruction)

    def write(self, target: Path, entrypoint: tuple[str, ...]) -> Digest:
        """The image so far as an archive; its digest."""
        if not self.layers:
            raise BadBuild("the image has no files: nothing was copied")
        config = {
            "Entrypoint": list(entrypoint),
            "Cmd": list(self.cmd),
            "Env": [f"{key}={told}" for key, told in self.env.items()],
            "Labels": self.labels,
            "User": f"{self.user}:{self.user}",
            "WorkingDir": self.work_dir,
        }
        return write_archive(
            target, self.layers, MACHINES.get(platform.machine(), platform.machine()), config
        )

    def take_last_layer(self, archive: Path, gone: Collection[str]) -> None:
        """The layer that a RUN left on top of what there was. `gone`: what it took away. Raises: BadImage, BadBuild."""
        found = inspect(archive, self.layers[-1].digest)
        *below, last = found.layers
        if [layer.judged.diff_id for layer in below] != [layer.diff_id for layer in self.layers]:
            raise BadBuild("the engine gave back another image than it was given")
        gone = [name for name in gone if self.names.kind(name) is not None]
        target = self.work / f"layer-{len(self.layers)}.tar"
        with archive.open("rb") as file:
            tar = LayerTar(Content(file, last.content), Budget())
            self._lay(rewrite_layer(target, tar, gone, OF_THE_ENGINE))
        archive.unlink()

    # -------------------------------------------------------------- parts

    def _begin(self, name: str, find_base: FindBase) -> None:
        if name == dockerfile.SCRATCH:
            self.env = dict(OBVIOUS_ENV)
            return
        base = find_base(name)
        if base is None:
            raise BadBuild(f"`bases` of policy.toml lacks {name!r:.120}: nothing is fetched from a registry")
        found = inspect(base.archive, base.digest)
        for layer in found.layers:
            self._lay(stored_layer(base.archive, layer.content, layer.judged.diff_id))
        self.env = OBVIOUS_ENV | dict(found.env)
        self.entrypoint = found.entrypoint

    def _lay(self, layer: StoredLayer) -> None:
        """One more layer. What was written here is judged as anybody's."""
        with layer.file.open("rb") as file:
            judged = check_layer(Content(file, layer.content), Budget())
            self.names.read(Content(file, layer.content), judged)
        self.layers.append(layer)

    def _with(self, known: Mapping[str, str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
        """What is known and these pairs, with the variables as they are before them. Raises: BadBuild."""
        told = dict(known)
        left = MAX_VALUES - sum(len(key) + len(one) for key, one in told.items())
        for key, raw in pairs:
            told[key] = value(raw, self.env)
            left -= len(key) + len(told[key])
            if left < 0:
                raise BadBuild(f"variables, or labels, have more than {MAX_VALUES} characters together")
        return told

    def _add(self, entries: Mapping[str, LayerEntry]) -> None:
        if not entries:
            return
        self._left_bytes -= sum(
            BLOCK + (one.content.size_bytes if one.content else 0) for one in entries.values()
        )
        if self._left_bytes < 0:  # the same files may be copied again and again
            raise BadBuild(
                f"the Dockerfile copies more than {self._limit_bytes >> 20} MiB, or too many files"
            )
        self._lay(write_layer(self.work / f"layer-{len(self.layers)}.tar", entries, self.context.file))

    def _add_folders(self, name: str) -> None:
        self._add({one: LayerEntry() for one in (*folders_above(name), name) if self.names.kind(one) is None})

    def _absolute(self, raw: str) -> str:
        told = value(raw, self.env)
        if not told or not told.isprintable():
            raise BadBuild(f"{raw!r:.120} is no path")
        return posixpath.normpath(posixpath.join("/", self.work_dir, told))

    def _copy(self, copy: Copy) -> None:
        told = value(copy.target, self.env)
        target = self.names.resolved(self._absolute(copy.target))
        sources = [name for raw in copy.sources for name in self._sources(value(raw, self.env))]
        is_folder = len(sources) > 1 or told.endswith(("/", "/.")) or told in {".", ".."}
        is_folder = is_folder or self.names.kind(target) is Kind.FOLDER
        if len(sources) > 1 and not told.endswith(("/", "/.")) and told not in {".", ".."}:
            raise BadBuild(f"several sources want a target that ends in a slash: {told!r:.120}")
        entries: dict[str, LayerEntry] = {}
        for name in sources:
            member = self.context.members.get(name)
            if member is None or member.kind is Kind.FOLDER:  # the context's root is no member
                self._copy_below(name, target, entries)
            else:
                if copy.is_add:
                    self._refuse_archive(name, member)
                place = _joined(target, posixpath.basename(name)) if is_folder else target
                self._put(entries, place, member)
        self._add(entries)

    def _sources(self, told: str) -> list[str]:
        """The names in the context that a source means: what it names, or what its * and ? stand for."""
        if ".." in told.split("/"):
            raise BadBuild(f"{told!r:.120} may lie outside of the context: sources without .. are taken")
        name = posixpath.normpath(told.lstrip("/")) if told.lstrip("/") else "."
        if name == ".":
            return [""]
        if re.search(r"[\[\]\\]", name):
            raise BadBuild(f"{told!r:.120}: of patterns only * and ? are read")
        if not {"*", "?"}.isdisjoint(name):
            found = sorted(one for one in self.context.members if _matches(one, name))
        else:
            found = [name] if name in self.context.members else []
        if not found:
            raise BadBuild(f"there is no {told!r:.120} in the context")
        for one in found:
            if self.context.members[one].kind is Kind.SYMBOLIC_LINK:
                raise BadBuild(f"{one!r:.120} is a link: name what it leads to, or the folder it lies in")
        return found

    def _copy_below(self, folder: str, target: str, entries: dict[str, LayerEntry]) -> None:
        """What lies in a folder of the context, not the folder itself."""
        prefix = f"{folder}/" if folder else ""
        self._put_folders(entries, target)
        for name in self._in_order[bisect_left(self._in_order, prefix) :]:
            if not name.startswith(prefix):
                return
            self._put(entries, _joined(target, name.removeprefix(prefix)), self.context.members[name])

    def _put(self, entries: dict[str, LayerEntry], place: str, member: Member) -> None:
        """One member at a place. Raises: BadBuild when something else stands there or on the way."""
        if member.kind is Kind.FOLDER:  # what stands there as a link to one will do
            place = self.names.resolved(place)
        else:
            folder, _, last = place.rpartition("/")
            place = _joined(self.names.resolved(folder), last)
        there = Kind.FOLDER if _is_folder(entries.get(place)) else self.names.kind(place)
        if (there is Kind.FOLDER) is not (member.kind is Kind.FOLDER) and there is not None:
            raise BadBuild(f"a {member.kind} is copied over the {there} {'/' + place!r:.120}")
        if "/" in place:
            self._put_folders(entries, posixpath.dirname(place))
        match member.kind:
            case Kind.FOLDER:
                if there is None:
                    entries[place] = LayerEntry(member.mode, member.mtime_s)
            case Kind.SYMBOLIC_LINK:
                entries[place] = LayerEntry(0o777, member.mtime_s, link=member.link)
            case Kind.FILE | Kind.HARD_LINK:
                entries[place] = LayerEntry(member.mode, member.mtime_s, content=member)

    def _put_folders(self, entries: dict[str, LayerEntry], name: str) -> None:
        for one in (*folders_above(name), *([name] if name else [])):
            there = self.names.kind(one)
            if there is None:
                entries.setdefault(one, LayerEntry())
            elif there is not Kind.FOLDER:
                raise BadBuild(f"{'/' + one!r:.120} is a {there}, no folder to copy into")

    def _refuse_archive(self, name: str, member: Member) -> None:
        head = self.context.content(member).read(512)
        if head.startswith(ARCHIVE_MAGICS) or head[257:262] == b"ustar":
            raise BadBuild(f"ADD would unpack {name!r:.120}: unpack it in the context, or COPY it as it is")


def _is_folder(entry: LayerEntry | None) -> bool:
    return entry is not None and entry.link is None and entry.content is None


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _matches(name: str, pattern: str) -> bool:
    """Part by part: a star stands for no slash."""
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(
        fnmatch.fnmatchcase(part, one) for part, one in zip(parts, wanted, strict=True)
    )
