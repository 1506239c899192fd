"""Reads the certificate and whether the key beside it is its own. The key itself is looked at and let go."""

from pathlib import Path

from agent.doctor.lines import Unknown
from agent.doctor.look import attempt
from agent.doctor.trust import Tls
from agent.trust.certificates import is_key_of, read_certificate


def look_at_tls(certificate: Path, key: Path) -> Tls:
    """The two files of the agent's TLS."""
    seen = attempt(lambda: read_certificate(certificate.read_bytes()))
    return Tls(
        certificate_path=str(certificate),
        key_path=str(key),
        certificate=Unknown(f"{certificate}: {seen.reason}") if isinstance(seen, Unknown) else seen,
        key_fits=attempt(lambda: is_key_of(key.read_bytes(), certificate.read_bytes())),
    )
