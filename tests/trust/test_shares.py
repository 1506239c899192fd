"""The key of a dataset from its shares, a share on its way, and each rule by which one is given out."""

import base64
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from agent.domain.chain import Task, TaskKind, plan
from agent.domain.ids import Digest, KeyId, OrderId, digest_of
from agent.domain.orders import DatasetRef, ImageRef, Learnuplet, SignedOrder
from agent.domain.receipts import Outcome, Receipt, ReceiptTask, SignedReceipt, Usage, next_link
from agent.domain.strict_json import encode
from agent.errors import (
    AgentError,
    BadEnvelope,
    BadJson,
    BadOrder,
    BadSeal,
    BadShare,
    BadSignature,
    BrokenLink,
    KeyNotValid,
    OrderExpired,
    OrderNotYetValid,
    ReceiptRefused,
    ShareRefused,
    ShareWithheld,
    TooLarge,
    UnknownKey,
    WrongRole,
)
from agent.trust.dataset_header import DatasetHeader, ShareHolder, SignedHeader, Use
from agent.trust.envelope import sign_envelope
from agent.trust.keys import SigningKey
from agent.trust.roster import DATASET_TYPE, Role, Roster
from agent.trust.rotation import sign_rotation
from agent.trust.shares import (
    CheckedShareRequest,
    ShareAnswer,
    ShareKeyPair,
    ShareRequest,
    check_share,
    check_share_request,
    concat,
    new_data_key,
    new_share,
    release_share,
    seal_share,
    share_commitment,
    share_info,
    unwrap_data_key,
    wrap_data_key,
)
from agent.trust.signed import sign_order, sign_receipt
from tests.trust.people import (
    AGENT,
    NOW,
    ORCHESTRATOR,
    OTHER_AGENT,
    OWNER,
    ROSTER,
    SECOND_ORCHESTRATOR,
    STRANGER,
    entry_of,
    roster_with,
)

VECTORS = Path(__file__).parent.parent / "vectors"
SKEW = timedelta(seconds=30)
HOUR = timedelta(hours=1)


def uuid(n: int) -> str:
    return f"00000000-0000-4000-8000-{n:012x}"


FIRST, SECOND, TESTED, ELSEWHERE = (DatasetRef(uuid(n), "1") for n in (1, 2, 3, 4))

SHARES = {ORCHESTRATOR.keyid: b"1" * 32, SECOND_ORCHESTRATOR.keyid: b"2" * 32}
DATA_KEY = bytes(range(32))


def signed_header(
    dataset: DatasetRef = SECOND,
    *,
    nodes: Sequence[KeyId] = (AGENT.keyid,),
    uses: Sequence[Use] = ("train",),
    shares: Sequence[tuple[KeyId, bytes]] = tuple(SHARES.items()),
    wrapped: bytes | None = None,
    owner: SigningKey = OWNER,
) -> SignedHeader:
    if wrapped is None:
        wrapped = wrap_data_key(DATA_KEY, shares, dataset=dataset, owner=owner.keyid)
    header = DatasetHeader(
        dataset=dataset.id,
        version=dataset.version,
        size=10,
        orchestrators=tuple(ShareHolder(keyid, share_commitment(share)) for keyid, share in shares),
        wrapped_key=base64.b64encode(wrapped).decode(),
        nodes=tuple(nodes),
        uses=tuple(uses),
    )
    payload = encode(header)
    envelope = sign_envelope(DATASET_TYPE, payload, owner)
    return SignedHeader(header, digest_of(payload), owner.keyid, envelope)


HEADER = signed_header()


# ------------------------------------------------------------------ the key from its shares


def test_parts_are_written_with_their_lengths() -> None:
    assert concat(b"ab", b"", b"c d") == b"2 ab 0  3 c d"


@given(one=st.lists(st.binary(max_size=6), max_size=4), other=st.lists(st.binary(max_size=6), max_size=4))
def test_other_parts_are_never_written_alike(one: list[bytes], other: list[bytes]) -> None:
    assert (concat(*one) == concat(*other)) == (one == other)


def test_all_shares_open_the_data_key() -> None:
    assert unwrap_data_key(HEADER, SHARES) == DATA_KEY


def test_shares_of_others_are_not_looked_at() -> None:
    assert unwrap_data_key(HEADER, {**SHARES, STRANGER.keyid: b"x"}) == DATA_KEY


@given(count=st.integers(1, 5), seed=st.binary(min_size=32, max_size=32))
def test_any_number_of_shares_opens_the_data_key(count: int, seed: bytes) -> None:
    shares = [(KeyId(f"{n:064x}"), hmac.digest(seed, b"%d" % n, "sha256")) for n in range(count)]
    header = signed_header(
        shares=shares, wrapped=wrap_data_key(seed, shares, dataset=SECOND, owner=OWNER.keyid)
    )

    assert unwrap_data_key(header, dict(shares)) == seed


@pytest.mark.parametrize("withheld", list(SHARES))
def test_a_withheld_share_keeps_the_dataset_closed(withheld: KeyId) -> None:
    given_out = {keyid: share for keyid, share in SHARES.items() if keyid != withheld}

    with pytest.raises(ShareWithheld, match=withheld[:16]):
        unwrap_data_key(HEADER, given_out)


@pytest.mark.parametrize("wrong_one", list(SHARES))
@pytest.mark.parametrize("wrong", [b"9" * 32, b"", b"1" * 31, b"1" * 33])
def test_the_orchestrator_of_a_wrong_share_is_named(wrong_one: KeyId, wrong: bytes) -> None:
    with pytest.raises(BadShare, match=wrong_one[:16]):
        unwrap_data_key(HEADER, {**SHARES, wrong_one: wrong})


def test_a_share_of_another_length_is_refused_though_the_owner_committed_to_it() -> None:
    header = signed_header(shares=[(ORCHESTRATOR.keyid, b"short")], wrapped=bytes(40))

    with pytest.raises(BadShare):
        unwrap_data_key(header, {ORCHESTRATOR.keyid: b"short"})


WRAPPED = wrap_data_key(DATA_KEY, [*SHARES.items()], dataset=SECOND, owner=OWNER.keyid)


@pytest.mark.parametrize(
    "other",
    [
        signed_header(DatasetRef(SECOND.id, "2"), wrapped=WRAPPED),
        signed_header(FIRST, wrapped=WRAPPED),
        signed_header(owner=STRANGER, wrapped=WRAPPED),
        signed_header(shares=[*reversed(SHARES.items())], wrapped=WRAPPED),
        signed_header(shares=[*SHARES.items()][:1], wrapped=WRAPPED),
        signed_header(wrapped=bytes(40)),
    ],
    ids=["version", "dataset", "owner", "order of shares", "fewer orchestrators", "garbage"],
)
def test_a_wrapped_key_opens_in_its_own_header_only(other: SignedHeader) -> None:
    with pytest.raises(BadSeal):
        unwrap_data_key(other, SHARES)


def test_a_wrapped_key_in_careless_base64_is_refused() -> None:
    careless = changed(HEADER.header, wrapped_key="A" * 53 + "B==")

    with pytest.raises(BadSeal):
        unwrap_data_key(changed(HEADER, header=careless), SHARES)


def hkdf_sha512(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 by hand: no salt, one block, 32 bytes."""
    return hmac.digest(hmac.digest(bytes(64), secret, "sha512"), info + b"\x01", "sha512")[:32]


def test_the_key_is_derived_as_the_contract_writes_it() -> None:
    """What another implementation computes from the contract's words, for the vector's shares."""
    vector = json.loads((VECTORS / "sealed-dataset.json").read_bytes())
    shares = [base64.b64decode(person["share"]) for person in vector["shares"]]
    ids = [person["keyid"].encode() for person in vector["shares"]]
    secret = b" ".join(b"32 " + share for share in shares)
    info = (
        b"17 dc-compute/kek/v1 36 0b7f8a52-6f1c-4c39-9a52-0f5b7a2f3d11 7 2031-05 64 "
        + OWNER.keyid.encode()
        + b"".join(b" 64 " + keyid for keyid in ids)
    )

    assert hkdf_sha512(secret, info).hex() == vector["kek"]


def test_new_shares_and_keys_are_32_bytes_and_never_the_same() -> None:
    made = {new_share(), new_share(), new_data_key(), new_data_key()}

    assert len(made) == 4
    assert {len(one) for one in made} == {32}


@pytest.mark.parametrize(("data_key", "share"), [(bytes(31), bytes(32)), (bytes(32), bytes(31))])
def test_nothing_shorter_than_32_bytes_is_wrapped(data_key: bytes, share: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        wrap_data_key(data_key, [(ORCHESTRATOR.keyid, share)], dataset=SECOND, owner=OWNER.keyid)


def test_an_orchestrator_without_a_share_has_none_that_is_right() -> None:
    with pytest.raises(BadShare, match="holds no share"):
        check_share(HEADER, STRANGER.keyid, b"1" * 32)


# ------------------------------------------------------------------ a share on its way

INFO = share_info(digest_of(b"order"), 1, SECOND.id, AGENT.keyid, ORCHESTRATOR.keyid)


def test_a_share_opens_for_the_key_and_the_request_it_was_sealed_for() -> None:
    pair = ShareKeyPair()

    assert pair.open(seal_share(b"s" * 32, pair.public_base64, INFO), INFO) == b"s" * 32


def test_what_a_share_is_bound_to_is_written_as_the_contract_says() -> None:
    agent, orchestrator = AGENT.keyid.encode(), ORCHESTRATOR.keyid.encode()
    order = digest_of(b"order").encode()

    expected = b"71 %b 1 1 36 %b 64 %b 64 %b" % (order, SECOND.id.encode(), agent, orchestrator)
    assert expected == INFO


@pytest.mark.parametrize(
    "other",
    [
        share_info(digest_of(b"another"), 1, SECOND.id, AGENT.keyid, ORCHESTRATOR.keyid),
        share_info(digest_of(b"order"), 2, SECOND.id, AGENT.keyid, ORCHESTRATOR.keyid),
        share_info(digest_of(b"order"), 1, FIRST.id, AGENT.keyid, ORCHESTRATOR.keyid),
        share_info(digest_of(b"order"), 1, SECOND.id, OTHER_AGENT.keyid, ORCHESTRATOR.keyid),
        share_info(digest_of(b"order"), 1, SECOND.id, AGENT.keyid, SECOND_ORCHESTRATOR.keyid),
    ],
    ids=["order", "position", "dataset", "agent", "orchestrator"],
)
def test_a_sealed_share_is_useless_for_another_request(other: bytes) -> None:
    pair = ShareKeyPair()

    with pytest.raises(BadShare):
        pair.open(seal_share(b"s" * 32, pair.public_base64, INFO), other)


def test_a_sealed_share_is_useless_for_another_task_key() -> None:
    with pytest.raises(BadShare):
        ShareKeyPair().open(seal_share(b"s" * 32, ShareKeyPair().public_base64, INFO), INFO)


@given(sealed=st.binary(max_size=120))
def test_what_is_no_sealed_share_is_refused(sealed: bytes) -> None:
    with pytest.raises(BadShare):
        ShareKeyPair().open(sealed, INFO)


@pytest.mark.parametrize(
    "key",
    ["", "AAAA", "é", base64.b64encode(bytes(32)).decode(), base64.b64encode(b"\x01" + bytes(31)).decode()],
    ids=["empty", "short", "no ascii", "zero point", "low order"],
)
def test_a_share_is_not_sealed_to_what_is_no_key(key: str) -> None:
    with pytest.raises(ShareRefused):
        seal_share(b"s" * 32, key, INFO)


def test_a_task_key_shows_its_public_half_only() -> None:
    pair = ShareKeyPair()

    assert repr(pair) == f"ShareKeyPair({pair.public_base64!r})"
    assert not hasattr(pair, "__dict__")


def test_an_answer_carries_the_sealed_share() -> None:
    assert ShareAnswer.parse(ShareAnswer.of(b"\x00sealed").encode()).sealed == b"\x00sealed"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{}", BadOrder),
        (b'{"sealed_share": "AAAA", "share": "AAAA"}', BadOrder),
        (b"[", BadJson),
        (b" " * 5000, TooLarge),
        (b'{"sealed_share": "A"}', BadShare),
        (b'{"sealed_share": "\xc3\xa9"}', BadShare),
    ],
)
def test_an_answer_of_another_shape_is_refused(body: bytes, error: type[AgentError]) -> None:
    with pytest.raises(error):
        _ = ShareAnswer.parse(body).sealed


# ------------------------------------------------------------------ a request, and how to break it

IMAGE = ImageRef(uuid(50), Digest("sha256:" + "5" * 64))


def order_of(
    train: Sequence[DatasetRef] = (FIRST, SECOND),
    test: Sequence[DatasetRef] = (TESTED,),
    *,
    not_before: datetime = NOW - HOUR,
    expires: datetime = NOW + HOUR,
    key: SigningKey = ORCHESTRATOR,
    id_: int = 100,
) -> SignedOrder:
    order = Learnuplet(
        id=OrderId(uuid(id_)),
        orchestrator=key.keyid,
        problem=uuid(10),
        problem_image=IMAGE,
        algo_image=IMAGE,
        model_start=None,
        model_end=uuid(11),
        rank=0,
        train_data=tuple(train),
        test_data=tuple(test),
        not_before=not_before,
        expires=expires,
    )
    return sign_order(order, key)


def receipt_of(
    order: SignedOrder,
    before: Sequence[SignedReceipt] = (),
    *,
    key: SigningKey = OTHER_AGENT,
    wrong: Mapping[str, object] = {},
) -> SignedReceipt:
    """A done receipt for the next place of this chain, right but for what `wrong` says."""
    previous, model_in = next_link(order, before)
    task = plan(order.order)[len(before)]
    is_learning = task.kind is TaskKind.LEARN
    right = Receipt(
        order=order.digest,
        order_id=order.order.id,
        position=task.position,
        task=ReceiptTask(task.kind, task.dataset.id, task.dataset.version),
        agent=key.keyid,
        previous=previous,
        model_in=model_in,
        model_out=digest_of(b"model %d" % len(before)) if is_learning else model_in,
        outputs=(),
        images=(),
        sandbox=None,
        policy=digest_of(b"policy"),
        attempt=1,
        started=NOW - HOUR / 2,
        finished=NOW - HOUR / 4,
        outcome=Outcome.DONE,
        reason=None,
        usage=Usage(wall_s=1.0),
    )
    return sign_receipt(changed(right, **wrong), key)


ORDER = order_of()
RECEIPT = receipt_of(ORDER)


@dataclass(frozen=True)
class Call:
    """One call of `check_share_request`: everything right, until a test replaces a part."""

    order: SignedOrder = ORDER
    receipts: tuple[SignedReceipt, ...] = (RECEIPT,)
    position: int = 1
    dataset: DatasetRef = SECOND
    header: SignedHeader = HEADER
    asker: KeyId = AGENT.keyid
    me: KeyId = ORCHESTRATOR.keyid
    roster: Roster = ROSTER
    now: datetime = NOW
    is_open: Callable[[SignedOrder, int], bool] = lambda order, position: True
    pair: ShareKeyPair = field(default_factory=ShareKeyPair)

    @property
    def request(self) -> ShareRequest:
        return ShareRequest(
            order=self.order.envelope,
            receipts=tuple(receipt.envelope for receipt in self.receipts),
            position=self.position,
            dataset=self.dataset.id,
            version=self.dataset.version,
            header=self.header.envelope,
            hpke_key=self.pair.public_base64,
        )

    def check(self, request: ShareRequest | None = None) -> CheckedShareRequest:
        return check_share_request(
            ShareRequest.parse((request or self.request).encode()),
            asker=self.asker,
            me=self.me,
            roster=self.roster,
            now=self.now,
            skew=SKEW,
            is_open=self.is_open,
        )


CALL = Call()


def test_a_right_request_is_answered_with_a_share_that_only_the_asker_opens() -> None:
    checked = CALL.check()

    sealed = ShareAnswer.parse(ShareAnswer.of(release_share(checked, SHARES[CALL.me])).encode()).sealed

    assert checked.task == Task(1, TaskKind.LEARN, SECOND)
    assert checked.order.digest == ORDER.digest
    info = share_info(ORDER.digest, 1, SECOND.id, AGENT.keyid, ORCHESTRATOR.keyid)
    assert CALL.pair.open(sealed, info) == SHARES[ORCHESTRATOR.keyid]


def test_the_shares_of_all_orchestrators_open_the_key() -> None:
    """The whole of it: two orchestrators release, the agent opens both answers and has the data key."""
    received = {}
    for me, share in SHARES.items():
        sealed = release_share(replace(CALL, me=me).check(), share)
        info = share_info(ORDER.digest, 1, SECOND.id, AGENT.keyid, me)
        received[me] = CALL.pair.open(sealed, info)

    assert unwrap_data_key(HEADER, received) == DATA_KEY


def test_an_orchestrator_answers_for_an_order_of_another_one() -> None:
    assert replace(CALL, me=SECOND_ORCHESTRATOR.keyid).check().order.signer == ORCHESTRATOR.keyid


def test_the_first_place_needs_no_receipt() -> None:
    first = replace(CALL, receipts=(), position=0, dataset=FIRST, header=signed_header(FIRST))

    assert first.check().task.position == 0


def test_a_test_task_is_released_where_its_use_is_allowed() -> None:
    receipts = (RECEIPT, receipt_of(ORDER, (RECEIPT,)))
    call = replace(
        CALL, receipts=receipts, position=2, dataset=TESTED, header=signed_header(TESTED, uses=("test",))
    )

    assert call.check().task.kind is TaskKind.TEST


# (1) who asks


@pytest.mark.parametrize(
    ("asker", "error"), [(STRANGER, UnknownKey), (SECOND_ORCHESTRATOR, WrongRole), (OWNER, WrongRole)]
)
def test_who_is_no_agent_of_the_roster_gets_no_share(asker: SigningKey, error: type[AgentError]) -> None:
    header = signed_header(nodes=(asker.keyid,))

    with pytest.raises(error):
        replace(CALL, asker=asker.keyid, header=header).check()


def test_a_revoked_agent_gets_no_share() -> None:
    roster = roster_with(entry_of(AGENT, Role.AGENT, revoked_at=NOW))

    with pytest.raises(KeyNotValid):
        replace(CALL, roster=roster).check()


def test_an_agent_whose_key_ran_out_gets_no_share() -> None:
    roster = roster_with(entry_of(AGENT, Role.AGENT, valid_until=NOW))

    with pytest.raises(KeyNotValid, match=AGENT.keyid):
        replace(CALL, roster=roster).check()


# (2) the order


@pytest.mark.parametrize(("key", "error"), [(STRANGER, UnknownKey), (AGENT, WrongRole)])
def test_an_order_by_no_orchestrator_opens_nothing(key: SigningKey, error: type[AgentError]) -> None:
    order = order_of(key=key)

    with pytest.raises(error):
        replace(CALL, order=order, receipts=(receipt_of(order),)).check()


def test_an_order_of_an_orchestrator_whose_key_ran_out_opens_nothing() -> None:
    roster = roster_with(entry_of(ORCHESTRATOR, Role.ORCHESTRATOR, valid_until=NOW))

    with pytest.raises(KeyNotValid):
        replace(CALL, roster=roster, me=SECOND_ORCHESTRATOR.keyid).check()


def test_an_edited_order_opens_nothing() -> None:
    other = order_of((ELSEWHERE, SECOND))
    edited = json.loads(ORDER.envelope) | {"payload": json.loads(other.envelope)["payload"]}
    request = changed(CALL.request, order=json.dumps(edited).encode())

    with pytest.raises(BadSignature):
        CALL.check(request)


@pytest.mark.parametrize(
    ("not_before", "expires", "error"),
    [
        (NOW - HOUR, NOW - timedelta(seconds=31), OrderExpired),
        (NOW + timedelta(seconds=31), NOW + HOUR, OrderNotYetValid),
    ],
)
def test_an_order_outside_its_time_opens_nothing(
    not_before: datetime, expires: datetime, error: type[AgentError]
) -> None:
    order = order_of(not_before=not_before, expires=expires)

    with pytest.raises(error):
        replace(CALL, order=order, receipts=(receipt_of(order),)).check()


# (3) its task


@pytest.mark.parametrize("dataset", [FIRST, TESTED, ELSEWHERE, DatasetRef(SECOND.id, "2")], ids=str)
def test_a_dataset_that_is_not_at_the_place_stays_closed(dataset: DatasetRef) -> None:
    header = signed_header(dataset, uses=("train", "test", "predict"))

    with pytest.raises(ShareRefused, match="is not on"):
        replace(CALL, dataset=dataset, header=header).check()


def test_a_place_after_the_end_of_the_chain_opens_nothing() -> None:
    order = order_of((FIRST,), (SECOND,))
    done = receipt_of(order)
    receipts = (done, receipt_of(order, (done,)))

    with pytest.raises(ShareRefused):
        replace(CALL, order=order, receipts=receipts, position=2).check()


def test_a_place_before_the_first_opens_nothing() -> None:
    """Python would count -1 from the end."""
    request = changed(CALL.request, position=-2, receipts=())

    with pytest.raises(ShareRefused):
        check_share_request(
            request,
            asker=AGENT.keyid,
            me=ORCHESTRATOR.keyid,
            roster=ROSTER,
            now=NOW,
            skew=SKEW,
            is_open=lambda order, position: True,
        )


# (4) receipts up to the place


@pytest.mark.parametrize("receipts", [(), (RECEIPT, receipt_of(ORDER, (RECEIPT,)))], ids=["fewer", "more"])
def test_a_place_comes_with_exactly_its_receipts(receipts: tuple[SignedReceipt, ...]) -> None:
    with pytest.raises(ShareRefused, match="receipts"):
        replace(CALL, receipts=receipts).check()


@pytest.mark.parametrize(("key", "error"), [(STRANGER, UnknownKey), (ORCHESTRATOR, WrongRole)])
def test_a_receipt_by_no_agent_is_refused(key: SigningKey, error: type[AgentError]) -> None:
    with pytest.raises(error):
        replace(CALL, receipts=(receipt_of(ORDER, key=key),)).check()


def test_a_receipt_of_a_key_that_did_not_hold_when_the_task_finished_is_refused() -> None:
    roster = roster_with(entry_of(OTHER_AGENT, Role.AGENT, valid_from=NOW - HOUR / 8))

    with pytest.raises(KeyNotValid):
        replace(CALL, roster=roster).check()


def test_a_receipt_of_a_key_that_ran_out_since_still_counts() -> None:
    roster = roster_with(entry_of(OTHER_AGENT, Role.AGENT, valid_until=NOW - HOUR / 8))

    assert replace(CALL, roster=roster).check().task.position == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"outcome": Outcome.FAILED, "reason": "exit"},
        {"order": digest_of(b"another order")},
        {"order_id": OrderId(uuid(101))},
        {"position": 1},
        {"task": ReceiptTask(TaskKind.LEARN, ELSEWHERE.id, "1")},
        {"agent": AGENT.keyid},
    ],
    ids=["failed", "order", "order id", "position", "task", "agent"],
)
def test_a_receipt_for_something_else_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ReceiptRefused):
        replace(CALL, receipts=(receipt_of(ORDER, wrong=wrong),)).check()


def test_a_receipt_of_another_order_is_refused() -> None:
    with pytest.raises(ReceiptRefused):
        replace(CALL, receipts=(receipt_of(order_of(id_=101)),)).check()


# (5) links


@pytest.mark.parametrize(
    "wrong",
    [
        {"previous": digest_of(b"another")},
        {"model_in": digest_of(b"another")},
        {"model_out": None},
    ],
    ids=["previous", "model_in", "model_out"],
)
def test_a_receipt_that_does_not_link_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BrokenLink):
        replace(CALL, receipts=(receipt_of(ORDER, wrong=wrong),)).check()


def test_a_swapped_receipt_in_the_middle_is_refused() -> None:
    """The second receipt is right after one first receipt, and comes after another one."""
    other_first = receipt_of(ORDER, wrong={"attempt": 2})
    receipts = (other_first, receipt_of(ORDER, (RECEIPT,)))
    header = signed_header(TESTED, uses=("test",))

    with pytest.raises(BrokenLink):
        replace(CALL, receipts=receipts, position=2, dataset=TESTED, header=header).check()


# (6) the place


def test_a_place_that_the_orchestrator_knows_as_closed_opens_nothing() -> None:
    asked: list[tuple[Digest, int]] = []

    def closed(order: SignedOrder, position: int) -> bool:
        asked.append((order.digest, position))
        return False

    with pytest.raises(ShareRefused, match="not open"):
        replace(CALL, is_open=closed).check()
    assert asked == [(ORDER.digest, 1)]


# (7) the owner's header


@pytest.mark.parametrize(("owner", "error"), [(STRANGER, UnknownKey), (ORCHESTRATOR, WrongRole)])
def test_a_header_by_no_owner_opens_nothing(owner: SigningKey, error: type[AgentError]) -> None:
    with pytest.raises(error):
        replace(CALL, header=signed_header(owner=owner)).check()


def test_a_header_of_an_owner_whose_key_ran_out_opens_nothing() -> None:
    roster = roster_with(entry_of(OWNER, Role.OWNER, valid_until=NOW))

    with pytest.raises(KeyNotValid):
        replace(CALL, roster=roster).check()


def test_a_header_that_names_no_orchestrator_of_the_roster_opens_nothing() -> None:
    header = signed_header(shares=[*SHARES.items(), (STRANGER.keyid, b"3" * 32)])

    with pytest.raises(UnknownKey):
        replace(CALL, header=header).check()


# (8) what the owner allows


@pytest.mark.parametrize(
    "header",
    [
        signed_header(FIRST),
        signed_header(DatasetRef(SECOND.id, "2")),
        signed_header(nodes=(OTHER_AGENT.keyid,)),
        signed_header(uses=("test", "predict")),
    ],
    ids=["dataset", "version", "node", "use"],
)
def test_what_the_owner_did_not_allow_opens_nothing(header: SignedHeader) -> None:
    with pytest.raises(ShareRefused):
        replace(CALL, header=header).check()


# (9) a share of ours, (10) and the right one


def test_an_orchestrator_that_the_owner_gave_no_share_releases_none() -> None:
    header = signed_header(shares=[(SECOND_ORCHESTRATOR.keyid, b"2" * 32)])

    with pytest.raises(ShareRefused, match="no share"):
        replace(CALL, header=header).check()


@pytest.mark.parametrize("share", [b"2" * 32, b"", bytes(32)])
def test_a_share_that_misses_its_commitment_is_not_released(share: bytes) -> None:
    with pytest.raises(BadShare, match=ORCHESTRATOR.keyid[:16]):
        release_share(CALL.check(), share)


# ------------------------------------------------------------------ the body of a request


def test_a_request_on_the_wire_is_read_as_it_was_written() -> None:
    parsed = ShareRequest.parse(CALL.request.encode())

    assert parsed.position == 1
    assert json.loads(parsed.order) == json.loads(ORDER.envelope)
    assert [json.loads(one) for one in parsed.receipts] == [json.loads(RECEIPT.envelope)]
    assert json.loads(parsed.header) == json.loads(HEADER.envelope)
    assert parsed.hpke_key == CALL.pair.public_base64


@pytest.mark.parametrize(
    "wrong",
    [
        {"order": "text"},
        {"order": {}},
        {"receipts": None},
        {"receipts": [{}]},
        {"position": -1},
        {"position": 1000},
        {"position": True},
        {"dataset": "../x"},
        {"version": ""},
        {"header": None},
        {"hpke_key": "AAAA"},
        {"hpke_key": "!" * 44},
        {"share": "AAAA"},
    ],
    ids=str,
)
def test_a_request_of_another_shape_is_refused(wrong: dict[str, object]) -> None:
    body = json.dumps({**json.loads(CALL.request.encode()), **wrong}).encode()

    with pytest.raises((BadOrder, BadEnvelope)):
        ShareRequest.parse(body)


def test_a_request_over_32_mib_is_refused() -> None:
    with pytest.raises(TooLarge):
        ShareRequest.parse(b" " * ((32 << 20) + 1))


@given(body=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_what_is_no_request_raises_only_errors_of_ours(body: bytes) -> None:
    with pytest.raises(AgentError):
        ShareRequest.parse(body)


# ------------------------------------------------------------------ an agent with a new key


NEW_KEY = SigningKey.generate()
OVERLAP_END = NOW + timedelta(hours=12)


def roster_of_rotation(*, is_stated: bool = True, **old_changes: object) -> Roster:
    """AGENT's new key beside its old one, which holds until OVERLAP_END."""
    statement = sign_rotation(AGENT, NEW_KEY, issued=NOW - HOUR, until=OVERLAP_END) if is_stated else None
    old = [e for e in ROSTER.entries if e.keyid == AGENT.keyid]
    others = [e for e in ROSTER.entries if e.keyid != AGENT.keyid]
    return Roster((
        *others,
        *(changed(e, **({"valid_until": OVERLAP_END} | old_changes)) for e in old),
        changed(
            old[0], keyid=NEW_KEY.keyid, public_key_base64=NEW_KEY.public.base64, rotation=statement
        ),
    ))  # fmt: skip


def test_a_share_for_the_old_key_is_given_to_the_new_one_while_the_old_one_holds() -> None:
    checked = replace(CALL, asker=NEW_KEY.keyid, roster=roster_of_rotation()).check()

    assert checked.asker == NEW_KEY.keyid


def test_no_share_for_a_key_that_no_statement_binds_to_the_one_the_owner_named() -> None:
    with pytest.raises(ShareRefused, match="does not let agent"):
        replace(CALL, asker=NEW_KEY.keyid, roster=roster_of_rotation(is_stated=False)).check()


def test_no_share_for_the_old_key_once_its_overlap_is_over() -> None:
    roster = roster_of_rotation(valid_until=NOW)

    with pytest.raises(ShareRefused, match="does not let agent"):
        replace(CALL, asker=NEW_KEY.keyid, roster=roster).check()


def test_no_share_for_a_successor_of_a_revoked_key() -> None:
    roster = roster_of_rotation(revoked_at=NOW)

    with pytest.raises(ShareRefused, match="does not let agent"):
        replace(CALL, asker=NEW_KEY.keyid, roster=roster).check()
