"""What an agent's keys mean to its doors: which keys are its own, under which name its containers are known, and who else takes
a key. Like `wiring.py` it names adapters.
"""

from datetime import UTC, datetime
from typing import assert_never
from urllib.parse import urlsplit

from agent.config import Settings
from agent.domain.ids import KeyId
from agent.errors import AgentUnreachable, BadSettings, KeyNotValid, UnknownKey
from agent.trust.keys import SigningKey
from agent.trust.roster import Role, Roster, RosterEntry

HTTP_UNAUTHORIZED, HTTP_SERVER_ERROR = 401, 500
STRANGERS = (UnknownKey.code.encode(), KeyNotValid.code.encode())
INSTANCE_DIGITS = 16  # of the key id, in the labels of containers


def own_keys(settings: Settings, me: KeyId) -> tuple[KeyId, ...]:
    """The keys of this agent up to `me`, oldest first, as its roster tells them; `me` alone where that cannot be read."""
    from agent.wiring import read_roster

    try:
        return read_roster(settings).line_of(me)
    except BadSettings:
        return (me,)


def instance_of(settings: Settings, me: KeyId) -> str:
    """What containers of this agent are labelled with. A new key finds those that run under the one before it."""
    return own_keys(settings, me)[0][:INSTANCE_DIGITS]


def fetch_public(settings: Settings, url: str, tls_ca: str | None, limit_bytes: int) -> bytes:
    """What lies at an https URL that is nobody's of the roster, asked for without a signature. Raises: AgentUnreachable.

    `tls_ca`: the authority (PEM) of its certificate; without it the system's count.
    """
    from agent.ports.https import HttpsClient, Identity, Peer, Timeouts

    parts = urlsplit(url)
    base, target = f"https://{parts.netloc}", (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    told, key = settings.timeouts, SigningKey.generate()  # with which nothing is signed
    client = HttpsClient(
        Identity(key, Roster, lambda: datetime.now(UTC)),
        Timeouts(told.connect_s, told.read_s, told.total_s, told.transfer_s),
    )
    try:
        return client.fetch(
            Peer(key.keyid, parts.netloc, base, tls_ca, AgentUnreachable), target, limit_bytes
        )
    finally:
        client.close()


def knows_key(settings: Settings, entry: RosterEntry, key: SigningKey) -> bool:
    """Whether the holder of this entry takes requests signed with `key`: asked for something small, which it may refuse.

    Raises: AgentUnreachable when it does not answer, or has no address.
    """
    from agent.ports.client_https import SignedClient
    from agent.ports.https import Identity, Peer, Timeouts

    told, target = settings.timeouts, _small_question(entry, key)
    peer = Peer.of(entry, entry.address, AgentUnreachable)
    identity = Identity(key, Roster, lambda: datetime.now(UTC))
    client = SignedClient(identity, peer, Timeouts(told.connect_s, told.read_s, told.total_s, told.total_s))
    try:
        answer = client.get(target)
    finally:
        client.close()
    if answer.status >= HTTP_SERVER_ERROR:
        raise AgentUnreachable(f"{peer} answers {answer.status}")
    return answer.status != HTTP_UNAUTHORIZED and not any(code in answer.body for code in STRANGERS)


def _small_question(entry: RosterEntry, key: SigningKey) -> str:
    match entry.role:
        case Role.AGENT:
            return "/v1/orders?limit=1"
        case Role.ORCHESTRATOR:
            return f"/v1/orders?agent={key.keyid}&state=open"
        case Role.STORAGE:
            return f"/v1/blobs/sha256:{'0' * 64}"
        case Role.OWNER:
            return ""  # an owner has no address to ask at
        case _:
            assert_never(entry.role)
