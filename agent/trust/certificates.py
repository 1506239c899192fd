"""TLS certificates: an authority in memory with server certificates by it, and what a certificate says. PEM bytes out, no
files. The authority that a consortium keeps: `authority.py`.

An installed agent may use any certificate whose authority stands in the roster (`tls_ca`); the identity
that counts is the signature of requests and answers.
"""

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

# What `cryptography` raises beside ValueError for extensions that TLS itself does not mind.
STRANGE = (x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType)

BACKDATED = timedelta(minutes=5)  # for hosts whose clock is a little behind


class TlsIdentity(Struct, frozen=True):
    """A certificate chain and its private key, both PEM (PKCS #8, not encrypted)."""

    certificate: bytes
    private_key: bytes


class CertificateAuthority:
    """An ECDSA P-256 authority that signs server certificates and nothing below them."""

    def __init__(self, name: str, *, now: datetime, days: int = 365) -> None:
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = certificate_builder(self._name, self._name, self._key.public_key(), now, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(key_usage(signs_certificates=True), critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())

    @property
    def certificate(self) -> bytes:
        """The authority's own certificate, PEM: the `tls_ca` of a roster entry."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def server(self, names: Sequence[str], *, now: datetime, days: int = 365) -> TlsIdentity:
        """A server's identity for these host names and IP addresses. Raises: ValueError when there are
        none.
        """
        if not names:
            raise ValueError("a server certificate names at least one host")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
        signer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            certificate_builder(subject, self._name, key.public_key(), now, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([alternative_name(name) for name in names]), critical=False
            )
            .add_extension(signer_id, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        private_key = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return TlsIdentity(certificate.public_bytes(serialization.Encoding.PEM), private_key)


def certificate_builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    """What every certificate has: names, a key and its id, a random serial number, dates."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """An authority signs certificates and lists; everybody else signs handshakes."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def alternative_name(name: str) -> x509.GeneralName:
    """A host name or an IP address, as a certificate names it. Raises: ValueError for what is not ASCII."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


# ------------------------------------------------------------------ reading


class CertificateView(Struct, frozen=True):
    """What a server's certificate says: host names and addresses, and from when to when it holds (aware UTC)."""

    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    subject: str = ""  # as RFC 4514 writes it
    serial: str = ""  # in hex
    is_for_servers: bool = True

    def is_for(self, host: str) -> bool:
        """Whether it names this host; one leading `*` stands for one label, as clients read it."""
        wanted = host.strip("[]").lower()
        above = wanted.partition(".")[2]
        return any(
            name.lower() == wanted or (name[:2] == "*." and above == name[2:].lower()) for name in self.names
        )


def read_certificate(pem: bytes) -> CertificateView:
    """What the first certificate of a chain says. Raises: ValueError when it is none."""
    return read_certificates(pem)[0]


def read_certificates(pem: bytes) -> tuple[CertificateView, ...]:
    """What each certificate of a chain says, the server's first. Raises: ValueError when there is none, or one is broken."""
    try:
        return tuple(_view(certificate) for certificate in x509.load_pem_x509_certificates(pem))
    except STRANGE as cause:
        raise ValueError(f"a certificate says what nobody can read: {cause}") from cause


def _view(certificate: x509.Certificate) -> CertificateView:
    try:
        told = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names: tuple[str, ...] = ()  # clients do not look at the subject any more
    else:
        addresses = (str(address) for address in told.get_values_for_type(x509.IPAddress))
        names = (*told.get_values_for_type(x509.DNSName), *addresses)
    return CertificateView(
        names,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        certificate.subject.rfc4514_string(),
        f"{certificate.serial_number:x}",
        _is_for_servers(certificate),
    )


def _is_for_servers(certificate: x509.Certificate) -> bool:
    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.SERVER_AUTH in uses


def split_chain(pem: bytes) -> tuple[bytes, ...]:
    """Each certificate of a chain alone. Raises: ValueError when there is none, or one is broken."""
    chain = x509.load_pem_x509_certificates(pem)
    return tuple(one.public_bytes(serialization.Encoding.PEM) for one in chain)


def is_signed_by(certificate: bytes, authority: bytes) -> bool:
    """Whether this authority signed this certificate, both PEM; dates are not judged. Raises: ValueError."""
    try:
        x509.load_pem_x509_certificate(certificate).verify_directly_issued_by(
            x509.load_pem_x509_certificate(authority)
        )
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True


def is_key_of(private_key: bytes, certificate: bytes) -> bool:
    """Whether this is the private key of the first certificate of a chain, both PEM. Raises: ValueError when one is none."""
    try:
        key = serialization.load_pem_private_key(private_key, password=None)
    except (TypeError, UnsupportedAlgorithm) as cause:  # TypeError: it is encrypted
        raise ValueError("it is encrypted, or of a kind that nobody knows") from cause
    return key.public_key() == x509.load_pem_x509_certificates(certificate)[0].public_key()
