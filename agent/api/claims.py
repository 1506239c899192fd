"""Nonces of requests under way. What a request does and that it was received go into one transaction; until then it is here.

A route that keeps its nonce itself claims it first: another request with the same one is refused from that moment on, and one
that the ledger knows at once. What the route records takes the nonce along. Where it records nothing, because it refuses or
because it did all of that before, the nonce is kept by itself, and always before the answer: nobody who was answered can have
the same request answered again. A crash before that leaves neither the nonce nor anything that the request did.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from agent.domain.ids import KeyId
from agent.domain.nonces import Nonce, replayed

RememberNonce = Callable[[KeyId, str, datetime, datetime], bool]
"""(keyid, nonce, keep until, now): whether it is new; from then on it is not, also after a restart."""

KnowsNonce = Callable[[KeyId, str, datetime], bool]
"""(keyid, nonce, now): whether it is kept still."""


@dataclass(slots=True)
class Claim:
    """A nonce that one request under way has. `is_kept`: durably. `is_settled`: nobody has to see to it any more."""

    nonce: Nonce
    is_kept: bool = False
    is_settled: bool = False


class Claims:
    """The claims of one process. Safe to use from threads."""

    def __init__(self, knows: KnowsNonce, remember: RememberNonce) -> None:
        self._knows: Final = knows
        self._remember: Final = remember
        self._lock: Final = threading.Lock()
        self._under_way: set[tuple[KeyId, str]] = set()

    def take(self, nonce: Nonce, now: datetime) -> Claim:
        """The claim of who comes first. Raises: ReplayedRequest for everybody after, LedgerUnavailable."""
        name = nonce.keyid, nonce.text
        with self._lock:
            if name in self._under_way:
                raise replayed()
            self._under_way.add(name)
        is_known = True
        try:
            is_known = self._knows(*name, now)
        finally:
            if is_known:
                self._let_go(nonce)
        if is_known:
            raise replayed()
        return Claim(nonce)

    def settle(self, claim: Claim, now: datetime) -> None:
        """Return with the nonce kept; nothing is claimed any more. Raises: LedgerUnavailable; ReplayedRequest when another
        process that shares the ledger was faster."""
        nonce, claim.is_settled = claim.nonce, True
        try:
            if not claim.is_kept and not self._remember(nonce.keyid, nonce.text, nonce.keep_until, now):
                raise replayed()
        finally:
            self._let_go(nonce)

    def _let_go(self, nonce: Nonce) -> None:
        with self._lock:
            self._under_way.discard((nonce.keyid, nonce.text))
