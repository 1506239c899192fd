"""A type that msgspec understood before anybody decodes with it.

msgspec reads a Struct's annotations at the first decoding and keeps what it found on the class, before it found all of it. A
second thread that decodes the same type meanwhile reads what is not there yet, and the process ends by SIGSEGV (seen in 0.22
of two deliveries that went at once). So the first time is had under a lock, here, before every decoding.
"""

import threading
from typing import Any, Final, TypeVar

import msgspec

T = TypeVar("T")

_LOCK: Final = threading.Lock()
_KNOWN: Final[set[Any]] = set()


def prepared(kind: type[T]) -> type[T]:
    """The same type, safe to decode with in any thread."""
    if kind not in _KNOWN:
        with _LOCK:
            msgspec.json.Decoder(kind, dec_hook=_never)
            _KNOWN.add(kind)
    return kind


def _never(_kind: type, _value: Any) -> Any:
    """Types of our own that a caller's hook would make: they are understood, and nothing is decoded here."""
    raise NotImplementedError
