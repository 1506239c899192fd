"""What a run works on: images, sealed datasets with canaries, orders, and what their models must be when nothing fails."""

import hashlib
import os
import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from agent.devkit.consortium import Consortium
from agent.devkit.publishing import publish_blob
from agent.devkit.server import now
from agent.domain.ids import Digest, OrderId, wire_time
from agent.domain.orders import DatasetRef, ImageRef, Learnuplet, ModelRef, Order, Preduplet
from agent.pipeline.outputs import pack
from agent.ports.storage import BlobKind
from agent.selftest.images import build_image, program_layer, python_layer
from agent.trust.dataset_header import Use
from tests.chaos.plan import PACES_S, PREDICT_EACH, TEST_EACH, TRAIN_EACH, Wish
from tests.host.podman import image_cache

GUEST = Path(__file__).parent / "guests" / "step.py"
PROGRAM = "/opt/program"
ORDER_LIFE = timedelta(hours=2)
MAX_ATTEMPTS = 10
Key = tuple[Use, str, int]  # use, hospital, number


@dataclass(frozen=True)
class Town:
    """A consortium with everything that its orders name."""

    consortium: Consortium
    seed: int
    images: Mapping[float, tuple[Path, Digest]]  # by pace
    refs: dict[Key, DatasetRef] = field(default_factory=dict)
    contents: dict[Key, bytes] = field(default_factory=dict)

    @property
    def canary(self) -> bytes:
        """What stands in every dataset and must lie on no disk."""
        return _line(b"a canary", str(self.seed).encode())

    @property
    def start_model(self) -> bytes:
        """The state of the model on which preduplets predict."""
        return _line(b"a model of old", str(self.seed).encode())

    def settle_in(self) -> None:
        """Bring images, the start model and sealed datasets to storage."""
        for archive, _ in self.images.values():
            self.consortium.publish_image(archive)
        with tempfile.TemporaryDirectory(dir=self.consortium.folder) as folder:
            archive = Path(folder, "model.tar")
            _pack(self.start_model, archive)
            keyids = [self.consortium.hospitals[0].storage.key.keyid]
            publish_blob(self.consortium.client(), archive, BlobKind.MODEL, keyids)
        dice = random.Random(f"data of {self.seed}")
        each: tuple[tuple[Use, int], ...] = (
            ("train", TRAIN_EACH), ("test", TEST_EACH), ("predict", PREDICT_EACH)
        )  # fmt: skip
        for hospital in self.consortium.hospitals:
            for use, count in each:
                for number in range(count):
                    self._seal((use, hospital.name, number), dice)

    def _seal(self, key: Key, dice: random.Random) -> None:
        use, name, number = key
        ref = DatasetRef(str(UUID(int=dice.getrandbits(128), version=4)), "1")
        content = f"{use} {number} of {name}\n".encode() + self.canary + f"\n{number}\n".encode()
        with tempfile.TemporaryDirectory(dir=os.environ["XDG_RUNTIME_DIR"]) as memory:
            plain = Path(memory, "plain")
            plain.write_bytes(content)
            self.consortium.seal(plain, ref, self.consortium.hospital(name), [use])
        self.refs[key], self.contents[key] = ref, content

    def order(self, wish: Wish) -> Order:
        """The order that was wished for."""
        dice = random.Random(f"order {wish.number} of {self.seed}")
        names = [str(UUID(int=dice.getrandbits(128), version=4)) for _ in range(4)]
        image = ImageRef(names[1], self.images[wish.pace_s][1])
        sender = self.consortium.orchestrators[wish.orchestrator].key.keyid
        begins = wire_time(now() - timedelta(seconds=5))
        ends = wire_time(now() + ORDER_LIFE)
        if wish.predict:
            return Preduplet(
                id=OrderId(names[0]),
                orchestrator=sender,
                problem=names[2],
                algo_image=image,
                model=ModelRef(_digest(self.start_model), self.consortium.hospitals[0].agent.key.keyid),
                data=tuple(self.refs["predict", name, number] for name, number in wish.predict),
                max_attempts=MAX_ATTEMPTS,
                not_before=begins,
                expires=ends,
            )
        return Learnuplet(
            id=OrderId(names[0]),
            orchestrator=sender,
            problem=names[2],
            problem_image=image,
            algo_image=image,
            model_start=None,
            model_end=names[3],
            rank=0,
            train_data=tuple(self.refs["train", name, number] for name, number in wish.train),
            test_data=tuple(self.refs["test", name, number] for name, number in wish.test),
            max_attempts=MAX_ATTEMPTS,
            not_before=begins,
            expires=ends,
        )

    def expected_model(self, wish: Wish) -> Digest | None:
        """What the guest leaves at the end of this order's training when nothing fails; None when it trains nothing."""
        if wish.predict:
            return None
        state = b""
        for name, number in wish.train:
            state = _line(state, self.contents["train", name, number])
        return _digest(state)


def guest_images() -> dict[float, tuple[Path, Digest]]:
    """The images of the guest, by pace: (archive, digest)."""
    cache = image_cache()
    made = {}
    for pace_s in sorted(set(PACES_S)):
        archive = cache / f"chaos-{pace_s:g}.tar"
        files = {f"{PROGRAM}/step.py": GUEST.read_bytes(), f"{PROGRAM}/pace": f"{pace_s:g}".encode()}
        layers = [python_layer(cache), program_layer(cache, files)]
        entrypoint = ["/usr/bin/python3", "-u", f"{PROGRAM}/step.py"]
        made[pace_s] = (archive, build_image(archive, layers=layers, entrypoint=entrypoint))
    return made


def _line(*parts: bytes) -> bytes:
    """As the guest reckons it."""
    return hashlib.sha256(b"\n".join(parts)).hexdigest().encode()


def _digest(state: bytes) -> Digest:
    with tempfile.TemporaryDirectory() as folder:
        return _pack(state, Path(folder, "model.tar"))


def _pack(state: bytes, archive: Path) -> Digest:
    """The archive of a model in this state, as an agent packs it; its digest."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "state").write_bytes(state)
        return pack(Path(folder), ("state",), archive)
