"""Data and orders that stand for no story: what tests of whole chains and the bench have agents work on."""

from collections.abc import Sequence
from uuid import uuid4

from agent.devkit.consortium import Consortium, Hospital, in_an_hour
from agent.devkit.server import now
from agent.domain.ids import Digest, KeyId, OrderId, wire_time
from agent.domain.orders import DatasetRef, ImageRef, Learnuplet


def fresh_dataset(consortium: Consortium, hospital: Hospital, content: bytes) -> DatasetRef:
    """Bring a new sealed dataset, for training, to this hospital."""
    ref = DatasetRef(str(uuid4()), "1")
    plain = consortium.folder / ref.id
    plain.write_bytes(content)
    consortium.seal(plain, ref, hospital, ["train"])
    plain.unlink()
    return ref


def training(
    orchestrator: KeyId, image: Digest, datasets: Sequence[DatasetRef], *, attempts: int = 3
) -> Learnuplet:
    """A new order that trains on these, one after the other, by one image for all, and tests on nothing. It has an hour."""
    ref = ImageRef(str(uuid4()), image)
    return Learnuplet(
        id=OrderId(str(uuid4())),
        orchestrator=orchestrator,
        problem=str(uuid4()),
        problem_image=ref,
        algo_image=ref,
        model_start=None,
        model_end=str(uuid4()),
        rank=0,
        train_data=tuple(datasets),
        test_data=(),
        max_attempts=attempts,
        not_before=wire_time(now()),
        expires=in_an_hour(),
    )
