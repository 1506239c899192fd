"""What the simulated hosts stand on in place of this machine: its clocks, its disk, its memory, and a log that nobody reads.

Everything else of the operating system is real: workspaces are folders on a tmpfs, with their modes, locks and renames.

Many hosts in one process read and verify the same bytes. What a pure function made of them is kept: JSON parsed once, and a
signature that was found good, by key, bytes and signature. Each is really parsed and really verified once.
"""

import logging
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import msgspec
import structlog

from agent import worker as real_worker
from agent.domain import strict_json
from agent.pipeline import phases, reconcile, space
from agent.trust import envelope
from agent.trust.keys import PublicKey
from tests.simulate.plan import Blow

if TYPE_CHECKING:
    from tests.simulate.world import Consortium

BLOCK_BYTES = 4096
BLOCKS = 1 << 30


KEPT = 10_000  # answers of a pure function: those on orders under way


class CrashLog:
    """The log of a worker: what nobody foresaw is kept."""

    def __init__(self, crashes: list[str]) -> None:
        self._crashes = crashes

    def exception(self, name: str, **values: object) -> None:
        self._crashes.append(f"{name} {values}: {traceback.format_exc()}")

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **values: None


def parsed_once() -> Callable[..., Any]:
    """`strict_json.parse`, asked once for the same bytes and limit. Nobody changes a tree."""
    real, known = strict_json.parse, dict[tuple[bytes, int], Any]()

    def parse(data: bytes, *, limit_bytes: int, what: str, **named: Any) -> Any:
        found = known.get((data, limit_bytes))
        if found is None:
            if len(known) > KEPT:
                del known[next(iter(known))]
            found = known[data, limit_bytes] = real(data, limit_bytes=limit_bytes, what=what, **named)
        return found

    return parse


def converted_once() -> Any:
    """`msgspec.convert` as `strict_json` calls it, asked once for a tree that `parse` keeps and a type: values are frozen."""
    known = dict[tuple[int, Any], tuple[Any, Any]]()

    def convert(tree: Any, kind: Any) -> Any:
        found = known.get((id(tree), kind))
        if found is None:
            if len(known) > KEPT:
                del known[next(iter(known))]
            found = known[id(tree), kind] = (
                msgspec.convert(tree, kind),
                tree,
            )  # the tree lives, so does its id
        return found[0]

    return SimpleNamespace(convert=convert, json=msgspec.json, ValidationError=msgspec.ValidationError)


def decoded_once() -> Callable[[str, str], bytes]:
    """Base64 of envelopes, asked once for the same text: whoever asks again gets the same bytes, whose hash is known."""
    real, known = envelope._decode_either, dict[str, bytes]()

    def decode(name: str, text: str) -> bytes:
        found = known.get(text)
        if found is None:
            if len(known) > KEPT:
                del known[next(iter(known))]
            found = known[text] = real(name, text)
        return found

    return decode


def verified_once() -> Callable[[PublicKey, bytes, bytes], None]:
    """`PublicKey.verify`, asked once for what it finds good."""
    real, good = PublicKey.verify, dict[tuple[bytes, bytes, bytes], None]()

    def verify(key: PublicKey, signature: bytes, data: bytes) -> None:
        name = (key.raw, signature, data)
        if name not in good:
            real(key, signature, data)
            if len(good) > KEPT:
                del good[next(iter(good))]
            good[name] = None

    return verify


@contextmanager
def simulated_machine(world: "Consortium") -> Iterator[None]:
    """While the context lasts, code of the agent sees the world's clock and disks."""
    real_statvfs, root = os.statvfs, f"{world.root}/"

    def statvfs(path: Any) -> Any:
        text = os.fspath(path) if not isinstance(path, int) else ""
        if not isinstance(text, str) or not text.startswith(root):
            return real_statvfs(path)
        host = world.hosts[int(text[len(root) :].split("/")[0].removeprefix("h"))]
        free = 0 if host.is_during(Blow.DISK_FULL) else BLOCKS
        return SimpleNamespace(
            f_frsize=BLOCK_BYTES, f_bsize=BLOCK_BYTES, f_blocks=BLOCKS, f_bfree=free, f_bavail=free
        )

    before = structlog.get_config()
    with ExitStack() as stack:
        stack.enter_context(patch.object(os, "statvfs", statvfs))
        stack.enter_context(patch.object(phases, "time", SimpleNamespace(monotonic=lambda: world.hub.now_s)))
        stack.enter_context(patch.object(space, "file_system_of", lambda *_: "tmpfs"))
        stack.enter_context(patch.object(space, "memory_available", lambda *_: ()))
        stack.enter_context(patch.object(strict_json, "parse", parsed_once()))
        stack.enter_context(patch.object(strict_json, "msgspec", converted_once()))
        stack.enter_context(patch.object(envelope, "_decode_either", decoded_once()))
        stack.enter_context(patch.object(PublicKey, "verify", verified_once()))
        drawn = SimpleNamespace(SystemRandom=lambda: world.dice)
        stack.enter_context(patch.object(reconcile, "secrets", drawn))
        stack.enter_context(patch.object(real_worker, "log", CrashLog(world.hub.crashes)))
        stack.callback(structlog.configure, **before)
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        yield
