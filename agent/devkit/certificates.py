"""TLS files for a consortium on one machine: an authority for all, a certificate for each server."""

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from msgspec import Struct

from agent.trust.certificates import CertificateAuthority


class TlsFiles(Struct, frozen=True):
    """Where a server's certificate and key lie (PEM, the key 0600)."""

    certificate: Path
    private_key: Path


def write_identity(
    folder: Path, name: str, authority: CertificateAuthority, hosts: Sequence[str], *, now: datetime
) -> TlsFiles:
    """Make a server's identity for these hosts and write it to `folder` as NAME.crt and NAME.key."""
    identity = authority.server(hosts, now=now)
    files = TlsFiles(folder / f"{name}.crt", folder / f"{name}.key")
    folder.mkdir(parents=True, exist_ok=True)
    files.certificate.write_bytes(identity.certificate)
    with os.fdopen(
        os.open(files.private_key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb"
    ) as file:
        file.write(identity.private_key)
    return files
