"""Sealed datasets for tests: small ones, by the owner of the stage."""

import io
from dataclasses import dataclass

from agent.domain.ids import KeyId
from agent.domain.orders import DatasetRef
from agent.trust.seal import make_seal, read_preamble
from tests.builders import HOSPITALS, ORCHESTRATORS, dataset, key_of


@dataclass(frozen=True)
class Sealed:
    """A sealed file, its header's envelope, and each orchestrator's share of its key."""

    ref: DatasetRef
    file: bytes
    header: bytes
    shares: dict[KeyId, bytes]


def seal(
    name: str, plain: bytes = b"age,outcome\n63,1\n", version: str = "1", owner: str = "owner"
) -> Sealed:
    """This plaintext as the dataset of that name, for everybody of the stage and every use."""
    ref, out = dataset(name, version), io.BytesIO()
    shares = make_seal(
        io.BytesIO(plain),
        out,
        size=len(plain),
        dataset=ref.id,
        version=ref.version,
        orchestrators=[key_of(o).keyid for o in ORCHESTRATORS],
        nodes=[key_of(f"agent-{h}").keyid for h in HOSPITALS],
        uses=["train", "test", "predict"],
        owner=key_of(owner),
    )
    return Sealed(ref, out.getvalue(), read_preamble(io.BytesIO(out.getvalue())), dict(shares))
