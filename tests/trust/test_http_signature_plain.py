"""The quick reader of signed requests and the library agree: on what is signed, on what it says, on what is refused."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.errors import BadRequestSignature
from agent.trust import http_signature_base
from agent.trust.http_messages import HttpRequest, content_digest
from agent.trust.http_signature_base import SoundSignature, verify_signature
from agent.trust.http_signature_plain import read_plain
from agent.trust.http_signatures import sign_request
from agent.trust.keys import PublicKey
from tests.builders import NOW, key_of

KEY = key_of("o1")
BODY = b'{"a":1}'
URL = "https://agent-a.test:8440/v1/learnuplets"


def find(keyid: str) -> PublicKey | None:
    return KEY.public if keyid == KEY.keyid else None


def signed(url: str = URL, method: str = "POST", body: bytes | None = BODY, **more: str) -> HttpRequest:
    fields = {"Host": url.split("/")[2], **more}
    if body is not None:
        fields |= {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Content-Digest": content_digest(body),
        }
    plain = HttpRequest(method, url, fields)
    fields |= sign_request(plain, KEY, now=NOW, has_body=body is not None)
    return HttpRequest(method, url, tuple(fields.items()))


def replaced(request: HttpRequest, name: str, value: str) -> HttpRequest:
    return HttpRequest(
        request.method,
        request.url,
        tuple((field, value if field == name else old) for field, old in dict(request.headers).items()),
    )


@contextmanager
def library_alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_signature_base, "read_plain", lambda _request: None)
        yield


def judged(request: HttpRequest) -> SoundSignature | None:
    """What it says; None when it is refused."""
    try:
        return verify_signature(request, find)
    except BadRequestSignature:
        return None


def same_as_the_library(request: HttpRequest) -> SoundSignature | None:
    """What both make of it."""
    quick = judged(request)
    with library_alone():
        assert judged(request) == quick
    return quick


@pytest.mark.parametrize(
    "request_",
    [
        signed(),
        signed(url=f"{URL}?state=done&limit=5", method="GET", body=None),
        signed(url="https://agent-a.test/v1/orders/0.1", method="GET", body=None),
        signed(traceparent=f"00-{'a' * 32}-{'b' * 16}-01"),
    ],
)
def test_what_our_own_signer_writes_is_read_quickly_and_as_the_library_reads_it(
    request_: HttpRequest,
) -> None:
    assert read_plain(request_) is not None
    assert same_as_the_library(request_) is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Signature", "dc=:" + "A" * 86 + "==:"),
        ("Content-Digest", content_digest(b"another")),
        ("Content-Length", "8"),
        ("Content-Type", "text/plain"),
    ],
)
def test_what_was_altered_is_refused_by_both(name: str, value: str) -> None:
    altered = replaced(signed(), name, value)

    assert read_plain(altered) is not None
    assert same_as_the_library(altered) is None


@pytest.mark.parametrize("url", [f"{URL}/", f"{URL}?a=1", "https://agent-b.test:8440/v1/learnuplets"])
def test_another_url_than_the_signed_one_is_refused_by_both(url: str) -> None:
    request = signed()

    assert same_as_the_library(HttpRequest(request.method, url, request.headers)) is None
    assert same_as_the_library(HttpRequest("PUT", request.url, request.headers)) is None


def test_a_key_that_nobody_knows_is_refused_by_both() -> None:
    request = signed()
    told = dict(request.headers)["Signature-Input"].replace(KEY.keyid, "0" * 64)

    assert same_as_the_library(replaced(request, "Signature-Input", told)) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"@method"', '"@method";req'),
        ('"@method" ', '"@method"  '),
        ('("@method"', '( "@method"'),
        ('("@method"', '("@method" "@method"'),
        ('"content-type"', '"Content-Type"'),
        ('"content-type"', '"x-nobody"'),
        ('"content-type"', '"@status"'),
        ('"content-type"', '"content-type";sf'),
        (";created=", "; created="),
        (";created=", ";created=0"),
        (";created=", ";created=-"),
        (";created=", ";created=1;created="),
        (";tag=", ";tag=?1;tag="),
        (";tag=", ";other=1;tag="),
        (';alg="ed25519"', ';alg="rsa-pss-sha512"'),
        (';alg="ed25519"', ""),
        (';tag="dc-compute-v1"', ';tag="dc-compute-v1", b=()'),
        ("dc=", "DC="),
        ("dc=", "dc =")
    ],
)  # fmt: skip
def test_another_spelling_of_what_is_signed_is_judged_as_the_library_judges_it(old: str, new: str) -> None:
    request = signed()
    told = dict(request.headers)["Signature-Input"]
    assert old in told

    same_as_the_library(replaced(request, "Signature-Input", told.replace(old, new, 1)))


@given(
    place=st.integers(0, 400),
    taken=st.integers(0, 3),
    put=st.text(st.sampled_from('()";=:, abz@-_09\\\t'), max_size=3),
    name=st.sampled_from(["Signature-Input", "Signature", "Content-Type", "Content-Length"]),
)
@example(place=0, taken=0, put="", name="Signature")
def test_whatever_is_altered_both_say_the_same(place: int, taken: int, put: str, name: str) -> None:
    request = signed()
    old = dict(request.headers)[name]
    at = place % (len(old) + 1)

    same_as_the_library(replaced(request, name, old[:at] + put + old[at + taken :]))


def test_a_field_that_stands_twice_is_judged_as_the_library_judges_it() -> None:
    request = signed()
    for name in ("Content-Type", "Signature", "Signature-Input", "Host"):
        twice = (*dict(request.headers).items(), (name, dict(request.headers)[name]))

        same_as_the_library(HttpRequest(request.method, request.url, twice))


@pytest.mark.parametrize(
    "url",
    [
        "https://AGENT-a.test:8440/v1/learnuplets",
        "https://agent-a.test:443/v1/learnuplets",
        "https://agent-a.test:0443/v1/learnuplets",
        "https://agent-a.test/v1/%6Cearnuplets",
        "https://agent-a.test/v1/../learnuplets",
        "https://agent-a.test/v1/learnuplets?",
        "https://agent-a.test",
        "https://[::1]:8440/v1/learnuplets",
    ],
)
def test_every_url_gives_the_same_components(url: str) -> None:
    assert same_as_the_library(signed(url=url)) is not None


FIELDS = (
    "content-type",
    "content-length",
    "host",
    "date",
    "cookie",
    "set-cookie",
    "x--y",
    "-",
    "@",
    "@status",
    "@target-uri",
)
NUMBERS = st.one_of(st.integers(0, 10**16), st.sampled_from([0, 10**15 - 1, 10**15]))
TEXTS = st.sampled_from(["", "dc-compute-v1", "ed25519", "rsa-v1_5-sha256", "a_b-C9", KEY.keyid])


@st.composite
def odd_requests(draw: st.DrawFn) -> HttpRequest:
    """A request in the quick reader's spelling whose signature it finds right; else one that it does not read."""
    url = draw(
        st.from_regex(
            r"https://[a-z0-9.-]{1,9}(:[1-9][0-9]{0,4})?/[a-zA-Z0-9/_.-]{0,9}(\?[a-z0-9=&_.-]{1,9})?",
            fullmatch=True,
        )
    )
    fields = [
        (name, draw(st.text('aZ0 ~!";:=(', min_size=1, max_size=5)))
        for name in draw(st.sets(st.sampled_from(FIELDS)))
    ]
    names = draw(
        st.lists(
            st.sampled_from(["@method", "@authority", "@path", "@query", *FIELDS]), min_size=1, max_size=6
        )
    )
    drawn = {
        "created": str(draw(NUMBERS)),
        "expires": str(draw(NUMBERS)),
        "keyid": f'"{KEY.keyid}"',
        "alg": f'"{draw(st.sampled_from(["ed25519", "ed25519", "", "rsa"]))}"',
        "tag": f'"{draw(TEXTS)}"',
        "nonce": f'"{draw(TEXTS)}"',
    }
    chosen = draw(st.lists(st.sampled_from(sorted(drawn)), min_size=1, max_size=6))
    told = (
        "("
        + " ".join(f'"{name}"' for name in names)
        + ")"
        + "".join(f";{name}={drawn[name]}" for name in chosen)
    )

    def with_signature(raw: bytes) -> HttpRequest:
        signature = base64.b64encode(raw).decode()
        both = (("signature-input", f"dc={told}"), ("signature", f"dc=:{signature}:"))
        return HttpRequest("GET", url, (*fields, *both))

    plain = read_plain(with_signature(bytes(64)))
    return with_signature(bytes(64) if plain is None else KEY.sign(plain.base))


@given(request=odd_requests())
def test_whatever_the_quick_reader_finds_rightly_signed_so_does_the_library(request: HttpRequest) -> None:
    same_as_the_library(request)


@pytest.mark.parametrize("name", ["@status", "@target-uri", "@x", "@"])
def test_a_field_never_stands_in_for_a_derived_component(name: str) -> None:
    fields = ((name, "x"), ("signature-input", f'dc=("{name}");keyid="{KEY.keyid}"'))
    signature = base64.b64encode(
        KEY.sign(f'"{name}": x\n"@signature-params": {fields[1][1][3:]}'.encode())
    ).decode()

    assert same_as_the_library(HttpRequest("GET", URL, (*fields, ("signature", f"dc=:{signature}:")))) is None
