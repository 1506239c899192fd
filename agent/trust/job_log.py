"""What a job printed, sealed for the ledger: it may print data, and a ledger's disk is backed up and one day thrown away.

Form: `DCLOG1\\n`, 32 random bytes, then the output under ChaCha20-Poly1305. The key is HKDF-SHA-256 of the agent's private
key with those bytes as salt, for this one output, so the nonce is zero; job, attempt and run are authenticated, so that
one run's output cannot be shown as another's. Only who holds the agent's key file opens it.
"""

import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from agent.domain.ids import JobId
from agent.errors import BadSeal
from agent.trust.keys import SigningKey

MAGIC: Final = b"DCLOG1\n"
SALT_BYTES: Final = 32

_NONCE = bytes(12)  # each key seals one output


def seal_log(output: bytes, key: SigningKey, *, job: JobId, attempt: int, run: str) -> bytes:
    """The output of this run as only this agent opens it."""
    salt = secrets.token_bytes(SALT_BYTES)
    place = _place(job, attempt, run)
    return MAGIC + salt + ChaCha20Poly1305(key.derive(salt, place)).encrypt(_NONCE, output, place)


def open_log(sealed: bytes, key: SigningKey, *, job: JobId, attempt: int, run: str) -> bytes:
    """The output of this run.

    Raises: BadSeal when it was sealed under another key or for another run, was altered, or was never sealed.
    """
    if not sealed.startswith(MAGIC):
        raise BadSeal("the output was not sealed: an older version kept it")
    place = _place(job, attempt, run)
    salt, body = sealed[len(MAGIC) : len(MAGIC) + SALT_BYTES], sealed[len(MAGIC) + SALT_BYTES :]
    try:
        return ChaCha20Poly1305(key.derive(salt, place)).decrypt(_NONCE, body, place)
    except InvalidTag as cause:
        raise BadSeal("the output was altered, or sealed under another key than this agent's") from cause


def _place(job: JobId, attempt: int, run: str) -> bytes:
    return b"dc-compute job log\0" + "\0".join((job, str(attempt), run)).encode()
