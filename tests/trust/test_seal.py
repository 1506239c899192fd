"""Sealed files: what opens, and that nothing else does. The C2SP chunked-encryption behaviours by name."""

import base64
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.chain import TaskKind
from agent.domain.ids import KeyId, digest_of
from agent.domain.orders import DatasetRef
from agent.domain.strict_json import encode
from agent.errors import (
    BadSeal,
    BadSettings,
    BadSignature,
    KeyNotValid,
    ShareRefused,
    UnknownKey,
    UnknownPayloadType,
    WrongRole,
)
from agent.trust.dataset_header import check_use
from agent.trust.envelope import sign_envelope
from agent.trust.keys import PublicKey, SigningKey
from agent.trust.roster import DATASET_TYPE, Role, Roster, RosterEntry
from agent.trust.seal import (
    MAX_HEADER_BYTES,
    DatasetHeader,
    Opener,
    ShareHolder,
    SignedHeader,
    make_seal,
    open_sealed,
    parse_header,
    read_preamble,
    seal_stream,
)
from agent.trust.shares import unwrap_data_key
from tests.trust.people import (
    AGENT,
    NOW,
    ORCHESTRATOR,
    OTHER_AGENT,
    OWNER,
    ROSTER,
    SECOND_ORCHESTRATOR,
    STRANGER,
    YEAR,
    entry_of,
    roster_with,
)

ROOT = Path(__file__).parent.parent.parent
VECTORS = ROOT / "tests" / "vectors"
DATASET = "0b7f8a52-6f1c-4c39-9a52-0f5b7a2f3d11"
REF = DatasetRef(DATASET, "1")
KEY = bytes(range(32))

CHUNK = 16 << 10  # of plaintext
SEALED_CHUNK = CHUNK + 16
CIPHER_HEAD = 56  # salt and key commitment before the first chunk


def header_for(size: int, **changed: object) -> DatasetHeader:
    fields: dict[str, object] = {
        "dataset": DATASET,
        "version": "1",
        "size": size,
        "orchestrators": (ShareHolder(ORCHESTRATOR.keyid, digest_of(b"share")),),
        "wrapped_key": base64.b64encode(bytes(40)).decode(),
        "nodes": (AGENT.keyid,),
        "uses": ("train",),
    }
    return DatasetHeader(**{**fields, **changed})  # type: ignore[arg-type]


def sealed(plain: bytes, *, key: bytes = KEY, version: str = "1") -> tuple[SignedHeader, bytes]:
    """(header, the whole file) of this plaintext."""
    out = io.BytesIO()
    header = header_for(len(plain), version=version)
    return seal_stream(io.BytesIO(plain), out, header=header, data_key=key, owner=OWNER), out.getvalue()


def opened(header: SignedHeader, file: bytes, *, key: bytes = KEY) -> bytes:
    out = io.BytesIO()
    size = open_sealed(io.BytesIO(file), out, header=header, data_key=key)
    assert size == len(out.getvalue())
    return out.getvalue()


def noise(size: int) -> bytes:
    return hashlib.shake_128(b"noise").digest(size)


THREE_AND_A_BIT = noise(3 * CHUNK + 100)


def ciphertext_starts(file: bytes) -> int:
    return 12 + int.from_bytes(file[8:12], "big")


def chunk_starts(file: bytes, number: int) -> int:
    return ciphertext_starts(file) + CIPHER_HEAD + number * SEALED_CHUNK


# ------------------------------------------------------------------ what opens


@pytest.mark.parametrize(
    "size",
    [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 7, (1 << 20) - 1, 1 << 20, (1 << 20) + 1],
)
def test_what_was_sealed_opens(size: int) -> None:
    plain = noise(size)

    header, file = sealed(plain)

    assert opened(header, file) == plain
    assert file.startswith(b"DCDATA1\n")


@given(
    size=st.integers(0, 4).flatmap(lambda n: st.integers(max(0, n * CHUNK - 2), n * CHUNK + 2)),
    steps=st.lists(st.integers(1, 40_000), min_size=1, max_size=8),
)
def test_what_was_sealed_opens_in_pieces_of_any_size(size: int, steps: list[int]) -> None:
    plain = noise(size)
    header, file = sealed(plain)
    opener, seen, at, turn = Opener(header, KEY), b"", 0, 0

    while at < len(file):
        step = steps[turn % len(steps)]
        seen += opener.feed(file[at : at + step])
        at, turn = at + step, turn + 1
    seen += opener.finish()

    assert seen == plain
    assert opener.opened_bytes == size


def test_the_same_plaintext_is_sealed_differently_each_time() -> None:
    assert sealed(b"x")[1] != sealed(b"x")[1]


def test_an_envelope_written_differently_is_the_same_header() -> None:
    """Storage serves the header with the metadata too and may write its JSON anew; the payload decides."""
    header, file = sealed(b"data")
    spaced = json.dumps(json.loads(header.envelope), indent=1).encode()
    elsewhere = parse_header(spaced, ROSTER, at=NOW)

    assert opened(elsewhere, file) == b"data"


def test_a_sealed_file_of_old_still_opens() -> None:
    """tests/vectors/sealed-dataset.json was made once; whoever implements the format elsewhere opens it too."""
    vector = json.loads((VECTORS / "sealed-dataset.json").read_bytes())
    roster = Roster(
        (
            entry_of_vector(vector["owner"], Role.OWNER),
            *(entry_of_vector(person["public_key"], Role.ORCHESTRATOR) for person in vector["shares"]),
        )
    )
    shares = {
        PublicKey.from_base64(person["public_key"]).keyid: base64.b64decode(person["share"])
        for person in vector["shares"]
    }
    file = base64.b64decode(vector["file"])

    header = parse_header(read_preamble(io.BytesIO(file)), roster, at=NOW)
    data_key = unwrap_data_key(header, shares)

    assert data_key.hex() == vector["data_key"]
    assert opened(header, file, key=data_key).decode() == vector["plaintext"]


def entry_of_vector(public_key: str, role: Role) -> RosterEntry:
    key = PublicKey.from_base64(public_key)
    return RosterEntry.of(key, role, "vector", valid_from=NOW - YEAR, valid_until=NOW + YEAR)


# ------------------------------------------------------------------ chunked encryption: what does not open


TRUNCATIONS: dict[str, Callable[[bytes], int]] = {
    "nothing left": lambda _: 0,
    "in the magic": lambda _: 5,
    "after the magic": lambda _: 8,
    "in the length": lambda _: 10,
    "after the length": lambda _: 12,
    "in the header": lambda file: ciphertext_starts(file) - 1,
    "after the header": ciphertext_starts,
    "in the salt": lambda file: ciphertext_starts(file) + 10,
    "before the first chunk": lambda file: chunk_starts(file, 0),
    "in the first chunk": lambda file: chunk_starts(file, 0) + 100,
    "before the first tag": lambda file: chunk_starts(file, 1) - 16,
    "after the first chunk": lambda file: chunk_starts(file, 1),
    "before the last chunk": lambda file: chunk_starts(file, 3),
    "before the last tag": lambda file: len(file) - 16,
    "the last byte": lambda file: len(file) - 1,
}


@pytest.mark.parametrize("where", TRUNCATIONS)
def test_a_truncated_file_is_refused(where: str) -> None:
    header, file = sealed(THREE_AND_A_BIT)

    with pytest.raises(BadSeal):
        opened(header, file[: TRUNCATIONS[where](file)])


def test_a_file_cut_in_its_header_is_told_from_one_that_was_altered() -> None:
    header, file = sealed(b"data")
    opener = Opener(header, KEY)

    assert opener.feed(file[:40]) == b""
    with pytest.raises(BadSeal, match="ends within its header"):
        opener.finish()


def test_a_file_that_ends_at_a_whole_chunk_is_refused_when_chunks_fit_exactly() -> None:
    header, file = sealed(noise(2 * CHUNK))

    with pytest.raises(BadSeal):
        opened(header, file[: chunk_starts(file, 1)])


@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_a_file_with_a_dropped_chunk_is_refused(dropped: int) -> None:
    header, file = sealed(THREE_AND_A_BIT)

    with pytest.raises(BadSeal):
        opened(header, file[: chunk_starts(file, dropped)] + file[chunk_starts(file, dropped + 1) :])


@pytest.mark.parametrize("first", [0, 1])
def test_a_file_with_swapped_chunks_is_refused(first: int) -> None:
    header, file = sealed(THREE_AND_A_BIT)
    a, b, c = (chunk_starts(file, first + n) for n in range(3))

    with pytest.raises(BadSeal):
        opened(header, file[:a] + file[b:c] + file[a:b] + file[c:])


@pytest.mark.parametrize("repeated", [0, 1, 2])
def test_a_file_with_a_repeated_chunk_is_refused(repeated: int) -> None:
    header, file = sealed(THREE_AND_A_BIT)
    a, b = chunk_starts(file, repeated), chunk_starts(file, repeated + 1)

    with pytest.raises(BadSeal):
        opened(header, file[:b] + file[a:b] + file[b:])


@pytest.mark.parametrize("appended", [b"x", bytes(16), bytes(SEALED_CHUNK), b"DCDATA1\n"])
def test_a_file_with_something_appended_is_refused(appended: bytes) -> None:
    header, file = sealed(THREE_AND_A_BIT)

    with pytest.raises(BadSeal):
        opened(header, file + appended)


def test_a_file_sent_twice_in_a_row_is_refused() -> None:
    header, file = sealed(THREE_AND_A_BIT)

    with pytest.raises(BadSeal):
        opened(header, file + file[ciphertext_starts(file) :])


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_file_with_one_flipped_bit_is_refused(place: int, bit: int) -> None:
    header, file = SEALED_ONCE
    start = ciphertext_starts(file)
    altered = bytearray(file)
    altered[start + place % (len(file) - start)] ^= 1 << bit

    with pytest.raises(BadSeal):
        opened(header, bytes(altered))


SEALED_ONCE = sealed(noise(CHUNK + 50))


def test_a_chunk_of_another_file_under_the_same_key_is_refused() -> None:
    header, file = sealed(THREE_AND_A_BIT)
    _, other = sealed(THREE_AND_A_BIT)
    a, b = chunk_starts(file, 1), chunk_starts(file, 2)

    with pytest.raises(BadSeal):
        opened(header, file[:a] + other[a:b] + file[b:])


def test_a_ciphertext_under_another_header_is_refused() -> None:
    """The context: same key, same plaintext, but the header says something else."""
    header, file = sealed(THREE_AND_A_BIT)
    other_header, other_file = sealed(THREE_AND_A_BIT, version="2")
    spliced = other_file[: ciphertext_starts(other_file)] + file[ciphertext_starts(file) :]

    with pytest.raises(BadSeal):
        opened(other_header, spliced)
    assert opened(header, file) == THREE_AND_A_BIT


def test_another_key_is_refused_before_the_first_chunk() -> None:
    """Key commitment: the salt and commitment alone tell, so no byte is opened under two keys."""
    header, file = sealed(THREE_AND_A_BIT)
    opener = Opener(header, bytes(32))

    with pytest.raises(BadSeal):
        opener.feed(file[: chunk_starts(file, 0)])


def test_after_a_refusal_an_opener_stays_closed() -> None:
    header, file = sealed(THREE_AND_A_BIT)
    opener = Opener(header, bytes(32))

    with pytest.raises(BadSeal):
        opener.feed(file)
    with pytest.raises(BadSeal):
        opener.feed(file)
    with pytest.raises(BadSeal):
        opener.finish()


def test_an_opener_gives_nothing_after_its_end() -> None:
    header, file = sealed(b"data")
    opener = Opener(header, KEY)

    assert opener.feed(file) + opener.finish() == b"data"
    with pytest.raises(BadSeal):
        opener.finish()


# ------------------------------------------------------------------ the header in the file


def test_a_file_whose_header_is_another_signed_one_is_refused() -> None:
    header, _ = sealed(b"data")
    _, other = sealed(b"data", version="2")

    with pytest.raises(BadSeal, match="not the one"):
        opened(header, other)


@pytest.mark.parametrize(
    "head",
    [
        b"DCDATA2\n" + bytes(100),
        b"PK\x03\x04",
        b"DCDATA1\n" + bytes(4),
        b"DCDATA1\n" + (MAX_HEADER_BYTES + 1).to_bytes(4, "big") + b"{}",
        b"DCDATA1\n\xff\xff\xff\xff",
        b"DCDATA1\n\x00\x00\x00\x02{}rest",
        b"DCDATA1\n\x00\x00\x00\x02\xff\xffrest",
    ],
)
def test_a_file_without_a_readable_header_is_refused(head: bytes) -> None:
    header, _ = sealed(b"data")

    with pytest.raises(BadSeal):
        opened(header, head)


def test_a_wrong_magic_is_refused_at_its_first_byte() -> None:
    header, _ = sealed(b"data")

    with pytest.raises(BadSeal, match="no sealed dataset"):
        Opener(header, KEY).feed(b"P")


class Dribble(io.BytesIO):
    """A stream that gives one byte at a time, as a pipe may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(1 if size else 0)


def test_the_preamble_is_read_alone() -> None:
    header, file = sealed(b"data")
    stream = Dribble(file)

    assert read_preamble(stream) == header.envelope
    assert stream.tell() == ciphertext_starts(file)


@pytest.mark.parametrize("size", [0, 5, 8, 11, 12, 40])
def test_a_preamble_that_ends_early_is_refused(size: int) -> None:
    _, file = sealed(b"data")

    with pytest.raises(BadSeal, match="ends within"):
        read_preamble(io.BytesIO(file[:size]))


@pytest.mark.parametrize(
    "head", [b"DCDATA2\n\0\0\0\1x", b"DCDATA1\n\0\1\0\1" + bytes(1 << 17), b"DCDATA1\n\0\0\0\0"]
)
def test_a_preamble_that_is_none_or_too_long_is_refused(head: bytes) -> None:
    with pytest.raises(BadSeal, match=r"no sealed dataset|limit"):
        read_preamble(io.BytesIO(head))


# ------------------------------------------------------------------ the size in the header


def sealed_under_a_lying_header(plain: bytes, told: int) -> tuple[SignedHeader, bytes]:
    """The owner's own mistake or lie: `seal_stream` writes the file and then refuses."""
    out = io.BytesIO()
    with pytest.raises(BadSettings, match="bytes"):
        seal_stream(io.BytesIO(plain), out, header=header_for(told), data_key=KEY, owner=OWNER)
    return parse_header(read_preamble(io.BytesIO(out.getvalue())), ROSTER, at=NOW), out.getvalue()


@pytest.mark.parametrize("told", [0, 9, 11, 1 << 40])
def test_a_plaintext_of_another_size_than_the_header_tells_is_refused(told: int) -> None:
    header, file = sealed_under_a_lying_header(b"0123456789", told)

    with pytest.raises(BadSeal, match="header"):
        opened(header, file)


def test_more_plaintext_than_the_header_tells_is_refused_before_it_is_given() -> None:
    header, file = sealed_under_a_lying_header(THREE_AND_A_BIT, 100)
    opener = Opener(header, KEY)

    with pytest.raises(BadSeal, match="more than"):
        opener.feed(file[: chunk_starts(file, 2)])


# ------------------------------------------------------------------ the header itself


def envelope_of(payload: bytes | None = None, *, key: SigningKey = OWNER, type_: str = DATASET_TYPE) -> bytes:
    return sign_envelope(type_, encode(header_for(4)) if payload is None else payload, key)


def payload_with(**changed: object) -> bytes:
    return json.dumps({**json.loads(encode(header_for(4))), **changed}).encode()


def test_a_header_signed_by_an_owner_is_accepted() -> None:
    signed = parse_header(envelope_of(), ROSTER, at=NOW)

    assert signed.header == header_for(4)
    assert signed.signer == OWNER.keyid
    assert signed.digest == digest_of(encode(header_for(4)))
    assert signed.header.ref == REF


def test_a_header_in_an_envelope_that_is_too_long_is_refused() -> None:
    padded = envelope_of().replace(b'"payload"', b" " * MAX_HEADER_BYTES + b'"payload"')

    with pytest.raises(BadSeal, match="limit"):
        parse_header(padded, ROSTER, at=NOW)


@pytest.mark.parametrize("key", [ORCHESTRATOR, AGENT])
def test_a_header_by_somebody_who_is_no_owner_is_refused(key: SigningKey) -> None:
    with pytest.raises(WrongRole):
        parse_header(envelope_of(key=key), ROSTER, at=NOW)


def test_a_header_by_a_stranger_is_refused() -> None:
    with pytest.raises(UnknownKey):
        parse_header(envelope_of(key=STRANGER), ROSTER, at=NOW)


def test_a_header_by_an_owner_whose_key_ran_out_is_refused() -> None:
    with pytest.raises(KeyNotValid):
        parse_header(envelope_of(), ROSTER, at=NOW + 2 * YEAR)


def test_an_edited_header_is_refused() -> None:
    envelope = json.loads(envelope_of())
    envelope["payload"] = base64.b64encode(payload_with(nodes=[OTHER_AGENT.keyid])).decode()

    with pytest.raises(BadSignature):
        parse_header(json.dumps(envelope).encode(), ROSTER, at=NOW)


def test_an_envelope_of_another_type_is_no_header() -> None:
    with pytest.raises(UnknownPayloadType):
        parse_header(envelope_of(type_="application/json"), ROSTER, at=NOW)


def holder(keyid: KeyId, share: bytes = b"share") -> dict[str, str]:
    return {"keyid": keyid, "share_commitment": digest_of(share)}


@pytest.mark.parametrize(
    "changed",
    [
        {"orchestrators": []},
        {"orchestrators": [holder(ORCHESTRATOR.keyid), holder(ORCHESTRATOR.keyid, b"another")]},
        {"orchestrators": [{"keyid": ORCHESTRATOR.keyid}]},
        {"orchestrators": [{**holder(ORCHESTRATOR.keyid), "weight": 2}]},
        {"nodes": []},
        {"nodes": [AGENT.keyid, AGENT.keyid]},
        {"nodes": ["*"]},
        {"uses": []},
        {"uses": ["train", "train"]},
        {"uses": ["publish"]},
        {"scheme": "k-of-n"},
        {"cipher": "aes-256-cbc"},
        {"size": -1},
        {"size": 1.5},
        {"size": 1 << 60},
        {"version": "../1"},
        {"dataset": DATASET.upper()},
        {"wrapped_key": "AAAA"},
        {"wrapped_key": base64.b64encode(bytes(40)).decode() + "\n"},
        {"owner": OWNER.keyid},
    ],
    ids=str,
)
def test_a_header_of_another_shape_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(BadSeal):
        parse_header(envelope_of(payload_with(**changed)), ROSTER, at=NOW)


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b'{"size": NaN}', b"\xff", b"[" * 5000])
def test_a_header_that_is_not_strict_json_is_refused(payload: bytes) -> None:
    with pytest.raises(BadSeal):
        parse_header(envelope_of(payload), ROSTER, at=NOW)


def test_a_header_with_a_key_twice_is_refused() -> None:
    payload = encode(header_for(4)).replace(b'"size":4', b'"size":4,"size":5')

    with pytest.raises(BadSeal, match="twice"):
        parse_header(envelope_of(payload), ROSTER, at=NOW)


@pytest.mark.parametrize("keyid", [STRANGER.keyid, AGENT.keyid, OWNER.keyid])
def test_a_header_that_names_no_orchestrator_of_the_roster_is_refused(keyid: KeyId) -> None:
    payload = payload_with(orchestrators=[holder(ORCHESTRATOR.keyid), holder(keyid)])

    with pytest.raises((UnknownKey, WrongRole)):
        parse_header(envelope_of(payload), ROSTER, at=NOW)


def test_a_header_that_names_a_revoked_orchestrator_is_refused() -> None:
    roster = roster_with(entry_of(ORCHESTRATOR, Role.ORCHESTRATOR, revoked_at=NOW - timedelta(days=1)))

    with pytest.raises(KeyNotValid):
        parse_header(envelope_of(), roster, at=NOW)


def test_a_header_that_names_an_orchestrator_whose_key_ran_out_is_refused() -> None:
    roster = roster_with(entry_of(ORCHESTRATOR, Role.ORCHESTRATOR, valid_until=NOW))

    with pytest.raises(KeyNotValid):
        parse_header(envelope_of(), roster, at=NOW)


def test_the_header_knows_the_commitment_of_each_orchestrator() -> None:
    header = header_for(4)

    assert header.commitment_of(ORCHESTRATOR.keyid) == digest_of(b"share")
    assert header.commitment_of(SECOND_ORCHESTRATOR.keyid) is None


# ------------------------------------------------------------------ what the owner allows

LEARN = TaskKind.LEARN


def test_the_owners_node_may_open_the_dataset_for_the_owners_use() -> None:
    check_use(parse_header(envelope_of(), ROSTER, at=NOW), dataset=REF, agent=AGENT.keyid, kind=LEARN)


@pytest.mark.parametrize(
    ("dataset", "agent", "kind"),
    [
        (DatasetRef(DATASET, "2"), AGENT.keyid, LEARN),
        (DatasetRef(DATASET.replace("0", "1"), "1"), AGENT.keyid, LEARN),
        (REF, OTHER_AGENT.keyid, LEARN),
        (REF, AGENT.keyid, TaskKind.TEST),
        (REF, AGENT.keyid, TaskKind.PREDICT),
    ],
    ids=["version", "dataset", "node", "test", "predict"],
)
def test_what_the_owner_did_not_allow_is_refused(dataset: DatasetRef, agent: KeyId, kind: TaskKind) -> None:
    signed = parse_header(envelope_of(), ROSTER, at=NOW)

    with pytest.raises(ShareRefused):
        check_use(signed, dataset=dataset, agent=agent, kind=kind)


# ------------------------------------------------------------------ at the owner's desk


def seal_at_the_desk(plain: bytes, **changed: object) -> tuple[bytes, dict[KeyId, bytes]]:
    fields: dict[str, object] = {
        "size": len(plain),
        "dataset": DATASET,
        "version": "1",
        "orchestrators": (ORCHESTRATOR.keyid, SECOND_ORCHESTRATOR.keyid),
        "nodes": (AGENT.keyid,),
        "uses": ("train", "test"),
        "owner": OWNER,
    }
    out = io.BytesIO()
    shares = make_seal(io.BytesIO(plain), out, **{**fields, **changed})  # type: ignore[arg-type]
    return out.getvalue(), dict(shares)


def test_a_dataset_sealed_at_the_desk_opens_with_all_shares() -> None:
    file, shares = seal_at_the_desk(THREE_AND_A_BIT)

    header = parse_header(read_preamble(io.BytesIO(file)), ROSTER, at=NOW)

    assert opened(header, file, key=unwrap_data_key(header, shares)) == THREE_AND_A_BIT
    assert list(shares) == [ORCHESTRATOR.keyid, SECOND_ORCHESTRATOR.keyid]
    assert len(set(shares.values())) == 2


def test_shares_may_be_given() -> None:
    given_share = {ORCHESTRATOR.keyid: bytes(32), SECOND_ORCHESTRATOR.keyid: b"1" * 32}

    _, shares = seal_at_the_desk(b"x", share_of=given_share.__getitem__)

    assert shares == given_share


def test_each_sealing_has_a_key_of_its_own() -> None:
    given_share = {ORCHESTRATOR.keyid: bytes(32), SECOND_ORCHESTRATOR.keyid: b"1" * 32}
    keys = set()
    for _ in range(2):
        file, _ = seal_at_the_desk(b"x", share_of=given_share.__getitem__)
        keys.add(unwrap_data_key(parse_header(read_preamble(io.BytesIO(file)), ROSTER, at=NOW), given_share))

    assert len(keys) == 2


@pytest.mark.parametrize(
    "changed",
    [
        {"size": 3},
        {"dataset": "my data"},
        {"version": "a/b"},
        {"orchestrators": ()},
        {"orchestrators": (ORCHESTRATOR.keyid, ORCHESTRATOR.keyid)},
        {"nodes": ()},
        {"nodes": (AGENT.keyid, AGENT.keyid)},
        {"nodes": tuple(f"{n:064x}" for n in range(257))},
        {"uses": ("learn",)},
        {"share_of": lambda _: b"short"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_desk_refuses_to_seal_what_nobody_would_open(changed: dict[str, object]) -> None:
    with pytest.raises(BadSettings):
        seal_at_the_desk(b"data", **changed)


def test_the_greatest_header_that_the_contract_allows_fits() -> None:
    orchestrators = tuple(f"{n:064x}" for n in range(32))
    nodes = tuple(f"{n:064x}" for n in range(256))

    file, _ = seal_at_the_desk(b"data", orchestrators=orchestrators, nodes=nodes)

    assert len(read_preamble(io.BytesIO(file))) < MAX_HEADER_BYTES


def test_an_opener_shows_no_key() -> None:
    header, _ = sealed(b"data")

    assert repr(Opener(header, KEY)) == f"Opener({DATASET}@1)"


# ------------------------------------------------------------------ memory

BIG_BYTES = 512 << 20


def test_512_mib_are_sealed_and_opened_while_memory_grows_by_less_than_64_mib() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.trust.seal_and_open", str(BIG_BYTES)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )

    told = json.loads(done.stdout)

    assert told["opened_bytes"] == BIG_BYTES
    assert told["growth_bytes"] < 64 << 20
