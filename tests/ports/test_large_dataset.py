"""A sealed dataset of 512 MiB goes from a real storage over TLS into the workspace in constant memory."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from agent.devkit.consortium import found, on_podman
from agent.devkit.publishing import publish_dataset
from agent.domain.orders import DatasetRef
from agent.trust.seal import make_seal, parse_header, read_preamble
from agent.trust.shares import new_share, unwrap_data_key

ROOT = Path(__file__).resolve().parents[2]
SIZE = 512 << 20


@pytest.mark.timeout(240)
def test_512_mib_are_fetched_checked_and_opened_while_memory_grows_by_less_than_64_mib(
    tmp_path: Path,
) -> None:
    town = found(
        tmp_path / "t", ("A",), runtime=on_podman(tmp_path / "none"), memory=tmp_path / "m", orchestrators=1
    )
    hospital, dataset = town.hospitals[0], DatasetRef(str(uuid4()), "1")
    plain, sealed, opened = tmp_path / "plain", tmp_path / "sealed", tmp_path / "opened"
    _write_noise(plain)
    with plain.open("rb") as source, sealed.open("wb") as target:
        shares = make_seal(
            source,
            target,
            size=SIZE,
            dataset=dataset.id,
            version=dataset.version,
            orchestrators=[town.orchestrators[0].key.keyid],
            nodes=[hospital.agent.key.keyid],
            uses=["train"],
            owner=town.owner,
            share_of=lambda _: new_share(),
        )
    with sealed.open("rb") as file:
        header = parse_header(read_preamble(file), town.roster, at=town.client().now())
    data_key = unwrap_data_key(header, dict(shares))
    town.start(hospital.storage)
    try:
        town.wait_until_ready([hospital.storage])
        publish_dataset(town.client(), sealed, dataset, [hospital.storage.key.keyid])
        sealed.unlink()

        told = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.ports.fetch_large",
                str(hospital.agent.folder),
                dataset.id,
                str(opened),
                data_key.hex(),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        town.stop(hospital.storage)

    assert told.returncode == 0, told.stderr
    assert _digest(opened) == _digest(plain)
    assert int(told.stdout) < 64 << 10


def _write_noise(path: Path) -> None:
    """Bytes that no compression makes small, without asking the kernel for all of them."""
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        for number in range(SIZE >> 20):
            file.write(number.to_bytes(8, "big") + block[8:])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
