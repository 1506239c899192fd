"""A request's nonce, as it is kept: so that a request which somebody recorded on the wire counts once."""

from datetime import datetime

from msgspec import Struct

from agent.domain.ids import KeyId
from agent.errors import ReplayedRequest


class Nonce(Struct, frozen=True, kw_only=True):
    """What one key signed once. After `keep_until` the signature itself has run out."""

    keyid: KeyId
    text: str
    keep_until: datetime


def replayed() -> ReplayedRequest:
    """What a request is refused with whose nonce is not new."""
    return ReplayedRequest("this signed request was received before")
