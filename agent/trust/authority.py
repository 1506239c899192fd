"""A consortium's TLS authority: made once, kept by one person, signing requests whose keys never leave their hosts.

ECDSA P-256, because every TLS stack takes it. The authority signs end certificates only (path length 0), for servers or for
clients, for 398 days at most, and where names were permitted when it was made, for those and those below them alone: the
certificate itself says so, so that clients hold it too. Of a request nothing is taken but its key and its names.

There is no revocation list: no client of ours would ask for one. What counts between parties is the signature of each call by
a key of the roster; a certificate's key that was stolen is answered by a new authority in the roster, or by the leaf's end.

Source: RFC 5280; the CA/Browser Forum's 398 days.
"""

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from agent.errors import BadSettings
from agent.trust.certificates import (
    STRANGE,
    TlsIdentity,
    alternative_name,
    certificate_builder,
    key_usage,
)

MAX_LEAF_DAYS: Final = 398
MAX_NAMES: Final = 32
NOBODY: Final = "invalid"  # RFC 2606: no host is called so


class Purpose(StrEnum):
    """What a certificate is for."""

    SERVER = "server"
    CLIENT = "client"


USES = {Purpose.SERVER: ExtendedKeyUsageOID.SERVER_AUTH, Purpose.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH}


class Request(Struct, frozen=True):
    """A signing request that holds: its holder has the key. `names`: the hosts and addresses it asks for."""

    names: tuple[str, ...]
    pem: bytes


def new_authority(name: str, *, permitted: Sequence[str], now: datetime, days: int) -> TlsIdentity:
    """An authority's certificate and key. `permitted`: domains and networks (CIDR) it may sign for; none: any.

    Raises: BadSettings.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = certificate_builder(subject, subject, key.public_key(), now, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(key_usage(signs_certificates=True), critical=True)
        if permitted:
            builder = builder.add_extension(_constraints(permitted), critical=True)
    except ValueError as cause:
        raise BadSettings(f"an authority of this name for these names cannot be: {cause}") from cause
    certificate = builder.sign(key, hashes.SHA256())
    return TlsIdentity(certificate.public_bytes(serialization.Encoding.PEM), _private(key))


def new_request(names: Sequence[str]) -> TlsIdentity:
    """A signing request for these hosts, and the key that stays: the request stands where the certificate will.

    Raises: BadSettings.
    """
    if not names:
        raise BadSettings("a request names at least one host")
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(names[0]))
        alternatives = x509.SubjectAlternativeName([alternative_name(name) for name in names])
    except ValueError as cause:
        raise BadSettings(f"{', '.join(names)}: {cause}") from cause
    request = builder.add_extension(alternatives, critical=False).sign(key, hashes.SHA256())
    return TlsIdentity(request.public_bytes(serialization.Encoding.PEM), _private(key))


def read_request(pem: bytes) -> Request:
    """What a signing request asks for, once its own signature was found to hold. Raises: BadSettings."""
    try:
        request = x509.load_pem_x509_csr(pem)
        if not request.is_signature_valid:
            raise ValueError("it is not signed by its own key")
        _check_key(request.public_key())
        told = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(_name_of(name) for name in told)
    except (ValueError, UnsupportedAlgorithm, InvalidSignature, x509.ExtensionNotFound, *STRANGE) as cause:
        raise BadSettings(f"this is no signing request that can be signed: {cause}") from cause
    if not 1 <= len(names) <= MAX_NAMES:
        raise BadSettings(f"the request asks for {len(names)} names, 1 to {MAX_NAMES} can be signed")
    return Request(names, pem)


class Authority:
    """An authority whose key is at hand."""

    def __init__(self, identity: TlsIdentity) -> None:
        """Raises: BadSettings when the two are not an authority and its key."""
        try:
            self._certificate = x509.load_pem_x509_certificate(identity.certificate)
            key = serialization.load_pem_private_key(identity.private_key, password=None)
            constraints = self._certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound) as cause:
            raise BadSettings(f"this is no authority and its key: {cause}") from cause
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not constraints.ca:
            raise BadSettings("this is no authority with an ECDSA key")
        if key.public_key() != self._certificate.public_key():
            raise BadSettings("the key is not that of the authority's certificate")
        self._key = key

    @property
    def not_after(self) -> datetime:
        """When the authority ends, and nothing it signed outlives it."""
        return self._certificate.not_valid_after_utc

    def issue(self, request: Request, *, purpose: Purpose, now: datetime, days: int) -> bytes:
        """The certificate (PEM) that this request asks for. Raises: BadSettings for what this authority must not sign."""
        if not 1 <= days <= MAX_LEAF_DAYS:
            raise BadSettings(f"a certificate holds 1 to {MAX_LEAF_DAYS} days, not {days}")
        if now + timedelta(days=days) > self.not_after:
            raise BadSettings(
                f"the authority itself ends {self.not_after.date()}: fewer days, or a new authority"
            )
        for name in request.names:
            self._check_permitted(name)
        asked = x509.load_pem_x509_csr(request.pem)
        public = asked.public_key()
        _check_key(public)
        assert isinstance(public, ec.EllipticCurvePublicKey)  # noqa: S101 - checked just now
        signer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        names = [alternative_name(name) for name in request.names]
        certificate = (
            certificate_builder(_subject(request.names[0]), self._certificate.subject, public, now, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([USES[purpose]]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(signer_id, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def _check_permitted(self, name: str) -> None:
        try:
            told = self._certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            return
        if not any(_is_below(name, tree) for tree in told.permitted_subtrees or ()):
            raise BadSettings(f"the authority was made for other names than {name}")


def _constraints(permitted: Sequence[str]) -> x509.NameConstraints:
    """The names it may sign for. A kind of name that nobody permitted is permitted for nobody."""
    domains: list[x509.GeneralName] = []
    networks: list[x509.GeneralName] = []
    for name in permitted:
        try:
            networks.append(x509.IPAddress(ipaddress.ip_network(name)))
        except ValueError:
            domains.append(x509.DNSName(_checked_host(name)))
    if not networks:
        everywhere: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_network(net)) for net in ("0.0.0.0/0", "::/0")
        ]
        return x509.NameConstraints(permitted_subtrees=domains, excluded_subtrees=everywhere)
    return x509.NameConstraints([*(domains or [x509.DNSName(NOBODY)]), *networks], None)


def _is_below(name: str, tree: x509.GeneralName) -> bool:
    if isinstance(tree, x509.IPAddress):
        try:
            return ipaddress.ip_address(name) in ipaddress.ip_network(str(tree.value))
        except ValueError:
            return False
    host, domain = name.lower(), str(tree.value).lower()
    return host == domain or host.endswith(f".{domain}")


def _name_of(name: x509.GeneralName) -> str:
    if isinstance(name, x509.IPAddress):
        return str(ipaddress.ip_address(str(name.value)))
    if isinstance(name, x509.DNSName):
        return _checked_host(name.value)
    raise ValueError("it asks for something else than host names and IP addresses")


def _checked_host(name: str) -> str:
    """A host name without a wildcard: one certificate, one host. Raises: ValueError."""
    labels = name.split(".")
    if len(name) > 253 or not all(
        0 < len(label) <= 63
        and label.isascii()
        and label.replace("-", "").isalnum()
        and label.strip("-") == label
        for label in labels
    ):
        raise ValueError(f"{name!r} is no host name")
    return name


def _check_key(key: object) -> None:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
        key.curve, ec.SECP256R1 | ec.SECP384R1
    ):
        raise ValueError("its key is not ECDSA on P-256 or P-384")


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
