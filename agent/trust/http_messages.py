"""HTTP messages as neutral values: requests, answers, their fields, the digest of a body streamed past.

No web framework and no client is known here; `http_signatures.py` signs and verifies these.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Self
from urllib.parse import urlsplit

from msgspec import Struct

Fields = Mapping[str, str] | tuple[tuple[str, str], ...]


class WireFields(tuple[tuple[str, str], ...]):
    """Pairs in wire order, of which many are asked for by name: those of a request that came in."""

    by_name: dict[str, list[str]]  # the values of a field's lines, by its name in lower case

    def __new__(cls, pairs: Iterable[tuple[str, str]]) -> Self:
        """These pairs."""
        fields = super().__new__(cls, pairs)
        fields.by_name = {}
        for name, value in fields:
            fields.by_name.setdefault(name.lower(), []).append(value)
        return fields


class HttpRequest(Struct, frozen=True):
    """A request as it goes over the wire.

    `url`: absolute https URL, authority as the peer was dialled (at the receiver: the Host field), path and
    query as on the wire, still percent-encoded. `headers`: pairs in wire order, or a mapping; names in any
    case.
    """

    method: str
    url: str
    headers: Fields = ()


class HttpAnswer(Struct, frozen=True):
    """An answer as it goes over the wire."""

    status: int
    headers: Fields = ()


def authority_of(url: str) -> str:
    """The `host` or `host:port` by which RFC 9421 names the server of this https URL. Raises: ValueError."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError(f"{url[:120]!r} is not an absolute https URL")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return host if parts.port in {None, 443} else f"{host}:{parts.port}"


# ------------------------------------------------------------------ digests of bodies


class ContentDigest:
    """The digest of a body that is streamed past: `update` with each piece, then `header` or `matches`."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.length = 0

    def update(self, piece: bytes | memoryview) -> None:
        """Take in the next bytes of the body."""
        self._hash.update(piece)
        self.length += len(piece)

    @property
    def header(self) -> str:
        """The Content-Digest field for what was seen so far, in the one form that is accepted."""
        return f"sha-256=:{base64.b64encode(self._hash.digest()).decode()}:"

    @property
    def hex_digest(self) -> str:
        """The same sha256 as 64 hex digits, for the digests of the contracts."""
        return self._hash.hexdigest()

    def matches(self, header: str) -> bool:
        """Whether this Content-Digest field is the one of the body."""
        return hmac.compare_digest(self.header.encode(), header.encode("utf-8", "replace"))


def content_digest(body: bytes) -> str:
    """The Content-Digest field of a body held in memory: `sha-256=:…:`."""
    digest = ContentDigest()
    digest.update(body)
    return digest.header


# ------------------------------------------------------------------ headers


def lines_of(headers: Fields, name: str) -> list[str]:
    """The values of a field, one for each of its lines."""
    if isinstance(headers, WireFields):
        return headers.by_name.get(name, [])
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return [value for line, value in pairs if line.lower() == name]


def field_of(headers: Fields, name: str) -> str | None:
    """The value of a field that stands once, without the white space around it."""
    lines = lines_of(headers, name)
    return lines[0].strip(" \t") if len(lines) == 1 else None


def announces_body(headers: Fields) -> bool:
    """Whether anything in the headers speaks of a body; `Content-Length: 0` alone does not.

    Transfer-Encoding counts: such a request then fails for want of a Content-Length, as the contract has it.
    """
    lengths = lines_of(headers, "content-length")
    speaking = ("content-type", "content-digest", "transfer-encoding")
    return any(lines_of(headers, name) for name in speaking) or any(length != "0" for length in lengths)
