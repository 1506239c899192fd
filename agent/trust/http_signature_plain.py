"""Signed requests in the one spelling that our own signer has, read in a tenth of the time that any spelling takes.

Every party of a consortium writes its fields with the same library, and so in the same spelling: one label, components that are
plain names, parameters that are plain texts and numbers. In that spelling a field's text is its own serialisation, and the
signature's base is made of it as it stands. Whatever is spelt otherwise, in the slightest, is not judged here: it gives None,
and the library reads it. So nothing is accepted by this that the library would refuse; tests/trust/test_http_signature_plain.py
holds both against each other.

Source: RFC 9421 sections 2.2, 2.3, 2.5 and 4; RFC 8941 section 4.1.
"""

import base64
import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from agent.trust.http_messages import HttpRequest, lines_of

_LABEL: Final = r"(?P<label>[a-z][a-z0-9_-]*)"
_INPUT: Final = re.compile(
    rf'{_LABEL}=(?P<told>\((?P<names>"[a-z@-]+"(?: "[a-z@-]+")*)\)(?P<parameters>(?:;[a-z]+=(?:[0-9]+|"[A-Za-z0-9_-]*"))+))'
)
_PARAMETER: Final = re.compile(r';([a-z]+)=(?:(0|[1-9][0-9]{0,14})|"([A-Za-z0-9_-]*)")')
_SIGNATURE: Final = re.compile(rf"{_LABEL}=:(?P<bytes>[A-Za-z0-9+/]{{86}}==):")
_URL: Final = re.compile(
    r"https://(?P<host>[a-z0-9.-]+)(?P<port>:[1-9][0-9]{0,4})?(?P<path>/[A-Za-z0-9/_.-]*)(?:\?(?P<query>[A-Za-z0-9=&_.-]+))?"
)
_VALUE: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?")  # one line of visible ASCII, no white space around it
_METHODS: Final = frozenset({"GET", "POST", "PUT", "DELETE"})
_NUMBERS: Final = frozenset({"created", "expires"})
_TEXTS: Final = frozenset({"nonce", "keyid", "alg", "tag"})


class PlainSignature(Struct, frozen=True):
    """What a request says of its signature, not yet verified. `components`, `parameters`: as of `SoundSignature`."""

    components: Mapping[str, str]
    parameters: Mapping[str, int | str]
    base: bytes
    signature: bytes


def read_plain(request: HttpRequest) -> PlainSignature | None:
    """The signature of a request in that one spelling; None for any other, right or wrong."""
    inputs, signatures = lines_of(request.headers, "signature-input"), lines_of(request.headers, "signature")
    if len(inputs) != 1 or len(signatures) != 1:
        return None
    told, signed = _INPUT.fullmatch(inputs[0]), _SIGNATURE.fullmatch(signatures[0])
    if told is None or signed is None or told["label"] != signed["label"]:
        return None
    parameters, components = _parameters(told["parameters"]), _components(told["names"], request)
    if parameters is None or components is None:
        return None
    components['"@signature-params"'] = told["told"]
    base = "\n".join(f"{name}: {value}" for name, value in components.items()).encode("ascii")
    signature = base64.b64decode(signed["bytes"], validate=True)
    if base64.b64encode(signature).decode() != signed["bytes"]:
        return None
    return PlainSignature(components, parameters, base, signature)


def _parameters(text: str) -> dict[str, int | str] | None:
    found: dict[str, int | str] = {}
    length = 0
    for match in _PARAMETER.finditer(text):
        name, number, words = match.groups()
        if name in found or name not in (_TEXTS if number is None else _NUMBERS):
            return None
        found[name] = words if number is None else int(number)
        length += len(match[0])
    is_whole = length == len(text) and "keyid" in found and found.get("alg", "ed25519") == "ed25519"
    return found if is_whole else None


def _components(names: str, request: HttpRequest) -> dict[str, str] | None:
    """Value by identifier, in the order in which they were signed."""
    url = _URL.fullmatch(request.url)
    if url is None or url["port"] == ":443" or request.method not in _METHODS:
        return None
    derived = {
        "@method": request.method,
        "@authority": f"{url['host']}{url['port'] or ''}",
        "@path": url["path"],
        "@query": f"?{url['query'] or ''}",
    }
    found: dict[str, str] = {}
    for identifier in names.split(" "):
        name = identifier.strip('"')
        value = derived.get(name) if name.startswith("@") else _field(name, request)
        if value is None or identifier in found:
            return None
        found[identifier] = value
    return found


def _field(name: str, request: HttpRequest) -> str | None:
    lines = lines_of(request.headers, name)
    return lines[0] if len(lines) == 1 and _VALUE.fullmatch(lines[0]) else None
