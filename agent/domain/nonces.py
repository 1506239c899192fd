"""A request's nonce, as it is kept: so that a request which somebody recorded on the wire counts once."""

from datetime import datetime

from msgspec import Struct

from agent.domain.ids import KeyId


class Nonce(Struct, frozen=True, kw_only=True):
    """What one key signed once. After `keep_until` the signature itself has run out."""

    keyid: KeyId
    text: str
    keep_until: datetime
