"""A consortium's authority: what it signs, what it refuses, and that strict clients take it, in real handshakes."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtensionOID, NameOID

from agent.errors import BadSettings
from agent.trust.authority import (
    MAX_LEAF_DAYS,
    Authority,
    Purpose,
    new_authority,
    new_request,
    read_request,
)
from agent.trust.certificates import (
    TlsIdentity,
    certificate_builder,
    is_signed_by,
    key_usage,
    read_certificates,
)

NOW = datetime.now(UTC)  # handshakes and openssl have no other clock


def authority(*permitted: str, days: int = 3652) -> TlsIdentity:
    return new_authority("Consortium <test>", permitted=permitted, now=NOW, days=days)


def issued(ca: TlsIdentity, *names: str, purpose: Purpose = Purpose.SERVER, days: int = 90) -> TlsIdentity:
    """A host's certificate with its authority, and the key that the host kept."""
    asked = new_request(names)
    certificate = Authority(ca).issue(read_request(asked.certificate), purpose=purpose, now=NOW, days=days)
    return TlsIdentity(certificate + ca.certificate, asked.private_key)


def openssl_says(
    tmp_path: Path, ca: TlsIdentity, leaf: TlsIdentity, *more: str
) -> subprocess.CompletedProcess[str]:
    """`openssl verify`, as strict as it can be."""
    (tmp_path / "ca.pem").write_bytes(ca.certificate)
    (tmp_path / "leaf.pem").write_bytes(leaf.certificate)
    return subprocess.run(
        ["openssl", "verify", "-x509_strict", "-check_ss_sig", "-CAfile", tmp_path / "ca.pem", *more, tmp_path / "leaf.pem"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip


def handshake(tmp_path: Path, server: TlsIdentity, trusted: bytes, host: str) -> str:
    """Shake hands over a real socket as an agent would; the version of TLS. Raises: ssl.SSLError."""
    (tmp_path / "s.crt").write_bytes(server.certificate)
    (tmp_path / "s.key").write_bytes(server.private_key)
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(tmp_path / "s.crt", tmp_path / "s.key")
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs.minimum_version = ssl.TLSVersion.TLSv1_3
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT
    theirs.load_verify_locations(cadata=trusted.decode())
    here, there = socket.socketpair()

    def serve() -> None:
        try:
            with ours.wrap_socket(there, server_side=True) as served:
                served.recv(1)
        except OSError:
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with theirs.wrap_socket(here, server_hostname=host) as called:
            called.send(b".")
            return called.version() or ""
    finally:
        here.close()
        thread.join(10)


# ------------------------------------------------------------------ strict clients


@pytest.mark.parametrize(
    "permitted", [(), ("example.org",), ("example.org", "192.0.2.0/24"), ("192.0.2.0/24", "example.org")]
)
def test_openssl_takes_it_at_its_strictest(tmp_path: Path, permitted: Sequence[str]) -> None:
    ca = authority(*permitted)

    said = openssl_says(
        tmp_path,
        ca,
        issued(ca, "a.example.org"),
        "-purpose",
        "sslserver",
        "-verify_hostname",
        "a.example.org",
    )

    assert said.returncode == 0, said.stdout + said.stderr


def test_openssl_takes_a_client_s_for_clients_only(tmp_path: Path) -> None:
    ca = authority()
    leaf = issued(ca, "desk.example.org", purpose=Purpose.CLIENT)

    assert openssl_says(tmp_path, ca, leaf, "-purpose", "sslclient").returncode == 0
    assert openssl_says(tmp_path, ca, leaf, "-purpose", "sslserver").returncode != 0


@pytest.mark.parametrize("host", ["a.example.org", "127.0.0.1"])
def test_hands_are_shaken_over_tls_1_3(tmp_path: Path, host: str) -> None:
    ca = authority()

    assert handshake(tmp_path, issued(ca, "a.example.org", "127.0.0.1"), ca.certificate, host) == "TLSv1.3"


def test_no_hands_with_another_host_or_under_another_authority(tmp_path: Path) -> None:
    ca = authority()
    server = issued(ca, "a.example.org")

    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(tmp_path, server, ca.certificate, "b.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, server, authority().certificate, "a.example.org")


def signed_by_hand(ca: TlsIdentity, name: str, *, is_ca: bool = False) -> TlsIdentity:
    """What a stolen key of the authority could sign beyond what this program would; well formed in all else."""
    key = ec.generate_private_key(ec.SECP256R1())
    root = x509.load_pem_x509_certificate(ca.certificate)
    root_key = serialization.load_pem_private_key(ca.private_key, None)
    assert isinstance(root_key, ec.EllipticCurvePrivateKey)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    made = (
        certificate_builder(subject, root.subject, key.public_key(), NOW, 30)
        .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        .add_extension(key_usage(signs_certificates=is_ca), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(signer_id, critical=False)
        .sign(root_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return TlsIdentity(made.public_bytes(serialization.Encoding.PEM), private)


def test_clients_themselves_refuse_what_lies_outside_the_permitted_names(tmp_path: Path) -> None:
    ca = authority("example.org")

    said = openssl_says(tmp_path, ca, signed_by_hand(ca, "bank.example.com"))

    assert said.returncode != 0
    assert "permitted subtree violation" in said.stdout + said.stderr


def test_clients_themselves_refuse_an_authority_below_it(tmp_path: Path) -> None:
    ca = authority()
    below = signed_by_hand(ca, "below", is_ca=True)
    leaf = signed_by_hand(TlsIdentity(below.certificate, below.private_key), "a.example.org")
    (tmp_path / "below.pem").write_bytes(below.certificate)

    said = openssl_says(tmp_path, ca, leaf, "-untrusted", str(tmp_path / "below.pem"))

    assert said.returncode != 0
    assert "path length constraint exceeded" in said.stdout + said.stderr


# ------------------------------------------------------------------ what it signs


def test_a_certificate_names_its_hosts_and_ends_in_time() -> None:
    ca = authority()
    leaf, root = read_certificates(issued(ca, "a.example.org", "192.0.2.7", days=90).certificate)

    assert leaf.names == ("a.example.org", "192.0.2.7")
    assert timedelta(days=89) < leaf.not_after - NOW <= timedelta(days=90)
    assert root.not_after > leaf.not_after
    assert is_signed_by(issued(ca, "a").certificate, ca.certificate)
    assert not is_signed_by(issued(ca, "a").certificate, authority().certificate)


@pytest.mark.parametrize("days", [0, -1, MAX_LEAF_DAYS + 1])
def test_a_certificate_that_holds_for_years_is_not_made(days: int) -> None:
    with pytest.raises(BadSettings, match="398"):
        issued(authority(), "a.example.org", days=days)


def test_no_certificate_outlives_its_authority() -> None:
    with pytest.raises(BadSettings, match="authority itself ends"):
        issued(authority(days=60), "a.example.org", days=61)


@pytest.mark.parametrize(
    ("permitted", "name"),
    [
        ("example.org", "example.com"),
        ("example.org", "badexample.org"),
        ("example.org", "192.0.2.1"),
        ("192.0.2.0/24", "198.51.100.1"),
        ("192.0.2.0/24", "a.example.org"),
    ],
)
def test_a_name_that_was_not_permitted_is_not_signed(permitted: str, name: str) -> None:
    with pytest.raises(BadSettings, match="other names"):
        issued(authority(permitted), name)


@pytest.mark.parametrize(
    ("permitted", "name"),
    [
        ("example.org", "example.org"),
        ("example.org", "A.example.ORG"),
        ("192.0.2.0/24", "192.0.2.1"),
        ("2001:db8::/32", "2001:db8::1"),
    ],
)
def test_a_name_that_was_permitted_is(permitted: str, name: str) -> None:
    assert issued(authority(permitted), name).certificate


def test_the_key_of_another_authority_is_refused() -> None:
    with pytest.raises(BadSettings, match="not that of"):
        Authority(TlsIdentity(authority().certificate, authority().private_key))


def test_an_end_certificate_is_no_authority() -> None:
    leaf = issued(authority(), "a.example.org")

    with pytest.raises(BadSettings, match="no authority"):
        Authority(leaf)


# ------------------------------------------------------------------ requests


def request_of(key: object, *names: x509.GeneralName) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]


def request_with(key: ec.EllipticCurvePrivateKey, names: bytes) -> bytes:
    """A request with these alternative names, DER."""
    told = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, names)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = builder.add_extension(told, critical=False).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


P256 = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        request_of(P256),
        request_of(P256, x509.DNSName("*.example.org")),
        request_of(P256, x509.DNSName("a_b.example.org")),
        request_of(P256, x509.DNSName("")),
        request_of(P256, x509.RFC822Name("a@example.org")),
        request_of(P256, x509.UniformResourceIdentifier("https://example.org")),
        request_with(P256, bytes.fromhex("3004a3023000")),  # an X.400 address, which nobody reads
        request_of(P256, *(x509.DNSName(f"h{n}.example.org") for n in range(33))),
        request_of(rsa.generate_private_key(65537, 2048), x509.DNSName("a.example.org")),
        request_of(ed25519.Ed25519PrivateKey.generate(), x509.DNSName("a.example.org")),
    ],
    ids=[
        "nothing", "no DER", "no name", "a wildcard", "an underscore", "an empty name", "a mailbox", "a URI", "X.400",
        "33 names", "RSA", "Ed25519",
    ],
)  # fmt: skip
def test_a_request_that_should_not_be_signed_is_refused(pem: bytes) -> None:
    with pytest.raises(BadSettings):
        read_request(pem)


def test_a_request_that_its_own_key_did_not_sign_is_refused() -> None:
    der = bytearray(
        x509.load_pem_x509_csr(new_request(["a.example.org"]).certificate).public_bytes(
            serialization.Encoding.DER
        )
    )
    der[der.find(b"a.example.org")] = ord("b")
    pem = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)

    with pytest.raises(BadSettings, match="signed by its own key"):
        read_request(pem)


@pytest.mark.parametrize("names", [[], [""], ["*.example.org"], ["a b"], ["ä.example.org"]])
def test_a_request_for_what_is_no_host_is_not_made(names: list[str]) -> None:
    with pytest.raises(BadSettings):
        read_request(new_request(names).certificate)
