"""Certificates for test consortia: what a strict client asks of them."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from agent.trust.certificates import CertificateAuthority

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def verify(authority: CertificateAuthority, certificate: bytes, host: str, at: datetime = NOW) -> None:
    """Judge a server's certificate by the rules of the web. Raises: VerificationError."""
    store = Store([x509.load_pem_x509_certificate(authority.certificate)])
    name: x509.DNSName | x509.IPAddress = x509.DNSName(host)
    if host[0].isdigit():
        name = x509.IPAddress(ip_address(host))
    verifier = PolicyBuilder().store(store).time(at).build_server_verifier(name)
    verifier.verify(x509.load_pem_x509_certificate(certificate), [])


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority("a town", now=NOW)


@pytest.mark.parametrize("host", ["storage-a.test", "127.0.0.1", "localhost"])
def test_a_certificate_holds_for_each_of_its_hosts(authority: CertificateAuthority, host: str) -> None:
    identity = authority.server(["storage-a.test", "127.0.0.1", "localhost"], now=NOW)

    verify(authority, identity.certificate, host)


def test_it_holds_for_no_other_host(authority: CertificateAuthority) -> None:
    with pytest.raises(VerificationError):
        verify(authority, authority.server(["a.test"], now=NOW).certificate, "b.test")


def test_it_holds_under_no_other_authority(authority: CertificateAuthority) -> None:
    other = CertificateAuthority("a town", now=NOW)

    with pytest.raises(VerificationError):
        verify(other, authority.server(["a.test"], now=NOW).certificate, "a.test")


@pytest.mark.parametrize("days", [-1, 31])
def test_it_holds_for_its_days_only(authority: CertificateAuthority, days: int) -> None:
    identity = authority.server(["a.test"], now=NOW, days=30)

    with pytest.raises(VerificationError):
        verify(authority, identity.certificate, "a.test", NOW + timedelta(days=days))


def test_the_key_is_the_certificates_own(authority: CertificateAuthority) -> None:
    identity = authority.server(["a.test"], now=NOW)

    key = load_pem_private_key(identity.private_key, None)

    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == x509.load_pem_x509_certificate(identity.certificate).public_key()


def test_a_certificate_for_nobody_is_refused(authority: CertificateAuthority) -> None:
    with pytest.raises(ValueError, match="at least one host"):
        authority.server([], now=NOW)
