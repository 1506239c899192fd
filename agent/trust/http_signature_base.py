"""The one door to the library http-message-signatures, which builds RFC 9421's bases and parses its fields; requests in our own
spelling are read by `http_signature_plain.py`.

Sound signatures only, no rules: `http_signatures.py` says what must be covered, by whom and when.
"""

import base64
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from http_message_signatures import (
    HTTPMessageSigner,
    HTTPMessageVerifier,
    HTTPSignatureAlgorithm,
    HTTPSignatureKeyResolver,
)
from http_message_signatures.exceptions import HTTPMessageSignaturesException
from msgspec import Struct

from agent.errors import BadRequestSignature, BadSignature
from agent.trust.http_messages import Fields, HttpAnswer, HttpRequest
from agent.trust.http_signature_plain import PlainSignature, read_plain
from agent.trust.keys import PublicKey, SigningKey

LABEL = "dc"  # of what we sign; a peer may choose another one
TAG = "dc-compute-v1"

FindKey = Callable[[str], PublicKey | None]


class SoundSignature(Struct, frozen=True):
    """A signature that holds. `components`: value by identifier, as in `"@path"` with its quotes."""

    components: Mapping[str, str]
    parameters: Mapping[str, int | str]


def sign_message(
    request: HttpRequest,
    key: SigningKey,
    *,
    answer: HttpAnswer | None = None,
    components: tuple[str, ...],
    created: datetime,
    expires: datetime | None = None,
    nonce: str | None = None,
) -> dict[str, str]:
    """The fields Signature-Input and Signature for this request, or for this answer to it.

    Raises: ValueError when a component is not there or the URL is not one.
    """
    signer = HTTPMessageSigner(signature_algorithm=_Ed25519)
    try:
        prepared = signer.prepare(
            _message(request, answer),
            key_id=key.keyid,
            created=created,
            expires=expires,
            nonce=nonce,
            label=LABEL,
            tag=TAG,
            covered_component_ids=components,
            use_existing_digest='"content-digest"' in components,
        )
    except HTTPMessageSignaturesException as cause:
        raise ValueError(f"the message cannot be signed: {cause}") from cause
    signature = base64.b64encode(key.sign(prepared.signature_base)).decode()
    return {
        "Signature-Input": f"{LABEL}={prepared.signature_params}",
        "Signature": f"{LABEL}=:{signature}:",
    }


def verify_signature(
    request: HttpRequest, find_key: FindKey, *, answer: HttpAnswer | None = None
) -> SoundSignature:
    """The one signature of this request, or of this answer to it, when it is an Ed25519 one that holds.

    More than one label is refused: neither a tag nor a label is chosen here, so the library insists on one.
    Raises: BadRequestSignature.
    """
    plain = read_plain(request) if answer is None else None
    if plain is not None:
        return _verify_plain(plain, find_key)
    verifier = _Verifier(signature_algorithm=_Ed25519, key_resolver=_KeyFinder(find_key))
    try:
        (result,) = verifier.verify(_message(request, answer), max_age=None)
    except HTTPMessageSignaturesException as cause:
        raise BadRequestSignature(f"the signature does not hold: {cause}"[:300]) from cause
    return SoundSignature(result.covered_components, result.parameters)


def _verify_plain(plain: PlainSignature, find_key: FindKey) -> SoundSignature:
    key = find_key(str(plain.parameters["keyid"]))
    if key is None:
        raise BadRequestSignature("the signature does not hold: its key is not known")
    try:
        key.verify(plain.signature, plain.base)
    except BadSignature as cause:
        raise BadRequestSignature(f"the signature does not hold: {cause}"[:300]) from cause
    return SoundSignature(plain.components, plain.parameters)


# ------------------------------------------------------------------ what the library wants to see


class _Pairs:
    """Fields as the library reads them: pairs, repeats and all."""

    def __init__(self, fields: Fields) -> None:
        self._pairs = tuple(fields.items() if isinstance(fields, Mapping) else fields)

    def items(self) -> tuple[tuple[str, str], ...]:
        return self._pairs


class _Request:
    def __init__(self, request: HttpRequest) -> None:
        self.method = request.method
        self.url = request.url
        self.headers = _Pairs(request.headers)


class _Answer:
    """`status_code` is what tells the library that it is no request."""

    def __init__(self, answer: HttpAnswer, request: HttpRequest) -> None:
        self.status_code = answer.status
        self.headers = _Pairs(answer.headers)
        self.request = _Request(request)


def _message(request: HttpRequest, answer: HttpAnswer | None) -> _Request | _Answer:
    return _Request(request) if answer is None else _Answer(answer, request)


class _Ed25519(HTTPSignatureAlgorithm):
    """Verifies by our own public keys; signing keys sign by themselves."""

    algorithm_id = "ed25519"

    def __init__(self, public_key: PublicKey) -> None:
        self._public_key = public_key

    def verify(self, signature: bytes, message: bytes) -> None:
        self._public_key.verify(signature, message)


class _KeyFinder(HTTPSignatureKeyResolver):
    def __init__(self, find: FindKey) -> None:
        self._find = find

    def resolve_public_key(self, key_id: str) -> PublicKey | None:
        return self._find(key_id)


class _Verifier(HTTPMessageVerifier):
    """The library's verifier without its clock: it reads the wall clock, and here time comes as `now`."""

    require_created = False

    def validate_created_and_expires(self, sig_input: Any, max_age: Any = None) -> None:
        """Nothing: who calls `verify_signature` judges the parameters by `now`."""
