"""A process of its own that fetches, checks and opens one sealed dataset, and prints how much its memory grew.

    python fetch_large.py HOME DATASET TARGET DATA-KEY-HEX

HOME holds identity.pem and roster.toml of an agent. The growth is of VmHWM, in KiB, from before the first byte.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent.domain.orders import DatasetRef
from agent.pipeline.opening import open_into
from agent.ports.https import Identity, Timeouts
from agent.ports.storage_https import HttpsStorage
from agent.trust.keys import SigningKey
from agent.trust.roster import Roster
from agent.trust.seal import Opener, parse_header


def peak_kib() -> int:
    """The most memory this process ever had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def main() -> None:
    """Fetch it."""
    home, dataset, target, data_key = sys.argv[1:]
    roster = Roster.from_toml((Path(home) / "roster.toml").read_text())
    identity = Identity(
        SigningKey.load(Path(home) / "identity.pem"),
        lambda: roster,
        lambda: datetime.now(UTC),
        timedelta(seconds=30),
    )
    storage = HttpsStorage(identity, identity.key.keyid, Timeouts(10, 30, 120, 600))
    info = storage.dataset(DatasetRef(dataset, "1"))
    header = parse_header(info.header, roster, at=datetime.now(UTC))
    before = peak_kib()
    opener = Opener(header, bytes.fromhex(data_key))
    open_into(Path(target), Path(f"{target}.partial"), opener, info, storage, lambda _size: None)
    sys.stdout.write(str(peak_kib() - before))


main()
