"""Four attacks on the consortium that just worked. Each must be refused, with a code that says what it was."""

import base64
import json
from collections.abc import Callable

from agent.devkit.demo.data import SPLITS
from agent.devkit.demo.story import Scene, agent_command
from agent.domain.orders import Learnuplet, SignedOrder
from agent.domain.standings import OrderState
from agent.errors import PeerRefused
from agent.trust.handoff import build_handoff
from agent.trust.keys import SigningKey
from agent.trust.roster import Role
from agent.trust.signed import open_receipt, sign_order

Attack = Callable[[Scene, SignedOrder], tuple[str, str]]


def attack(scene: Scene, signed: SignedOrder) -> None:
    """Try each and show its code."""
    show = scene.show
    show.chapter("Four attacks, and what became of them")
    attacks: tuple[tuple[str, Attack, set[str]], ...] = (
        ("an order signed by a key that nobody knows", forged_order, {"unknown-key"}),
        ("a hand-off whose order was altered on the way", altered_handoff, {"bad-signature"}),
        ("an algorithm that opens a socket", open_socket, {"seccomp"}),
        ("a dataset whose share one orchestrator withholds", withheld_share, {"share-withheld"}),
    )
    for what, attempt, expected in attacks:
        code, detail = attempt(scene, signed)
        show.expect(f"{what} is refused: {code}", code in expected, detail[:60])


def forged_order(scene: Scene, _: SignedOrder) -> tuple[str, str]:
    """A stranger's order, brought to A by somebody whom A knows."""
    forged = sign_order(_small_order(scene), SigningKey.generate())
    return _refusal(scene, "A", "/v1/learnuplets", forged.envelope, scene.consortium.orchestrators[0].key)


def altered_handoff(scene: Scene, signed: SignedOrder) -> tuple[str, str]:
    """A's hand-off to B as it really was, but for the limits of the order inside it."""
    document = json.loads(signed.envelope)
    order = json.loads(base64.b64decode(document["payload"]))
    order["limits"] = {"wall_s": 10**6}
    document["payload"] = base64.b64encode(json.dumps(order).encode()).decode()
    spoiled = SignedOrder(signed.order, signed.digest, signed.signer, json.dumps(document).encode())
    first = open_receipt(scene.consortium.book().receipts(signed.order.id)[0], scene.consortium.roster)
    sender = scene.consortium.hospital("A").agent.key
    return _refusal(scene, "B", "/v1/handoffs", build_handoff(spoiled, [first]), sender)


def open_socket(scene: Scene, _: SignedOrder) -> tuple[str, str]:
    """An admitted algorithm that tries to carry the data out: plain sockets are refused, the way around them kills it."""
    signed = scene.issue(_small_order(scene, is_talkative=True))
    reason, detail = _run(scene, signed)
    words = agent_command(scene.consortium.hospital("A"), "log", signed.order.id).strip().splitlines()
    refused = [word for word in words if word.startswith("AF_INET: ")]
    return (reason, refused[0]) if refused and not detail else ("not refused", detail)


def withheld_share(scene: Scene, _: SignedOrder) -> tuple[str, str]:
    """The second orchestrator keeps its share of A's data for itself; the first one cannot do without."""
    book, dataset = scene.consortium.book(1), SPLITS[0].ref.id
    book.withhold(dataset, "the owner asked for a pause")
    try:
        return _run(scene, scene.issue(_small_order(scene)))
    finally:
        book.withhold(dataset, None)


def _small_order(scene: Scene, *, is_talkative: bool = False) -> Learnuplet:
    image = scene.images.talkative if is_talkative else scene.images.algo
    return scene.order(image.digest, [SPLITS[0]], [], attempts=1)


def _run(scene: Scene, signed: SignedOrder) -> tuple[str, str]:
    state = scene.wait(signed)
    ended = scene.consortium.book().order(signed.order.id)
    reason = None if ended is None else ended.reason
    return (reason or "no reason told", "" if state is OrderState.FAILED else f"the order is {state}")


def _refusal(scene: Scene, hospital: str, route: str, body: bytes, key: SigningKey) -> tuple[str, str]:
    agent = scene.consortium.hospital(hospital).agent
    entry = scene.consortium.roster.require(agent.key.keyid, role=Role.AGENT, at=None)
    try:
        scene.consortium.client_of(key).send(entry, "POST", route, body, is_answer_signed=False)
    except PeerRefused as refused:
        return refused.refusal, refused.detail
    return "accepted", "the agent took it"
