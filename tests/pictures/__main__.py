"""The pictures of the status page in the documents, from a real run: `make pictures`.

Three hospitals with real agents and containers train, test and fail; somebody is refused; the doctor looks. A real Chromium
then takes pictures of the third hospital's page. The pictures leave as a tar archive on standard output.
"""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import httpx
from playwright.sync_api import Page, expect

from agent.devkit.consortium import Consortium, found, in_an_hour, on_podman, running
from agent.devkit.demo.data import SPLITS, Split, write_splits
from agent.devkit.demo.guests import DemoImages, demo_images
from agent.devkit.issuing import issue
from agent.devkit.podman_service import checkout_folders, podman_service
from agent.devkit.server import now
from agent.devkit.waiting import wait_for
from agent.domain.ids import Digest, OrderId, wire_time
from agent.domain.orders import ImageRef, Learnuplet, SignedOrder
from agent.domain.standings import OrderState
from agent.errors import PeerRefused
from agent.log import LogLevel, configure
from tests.api.page.browser import PHONE, chromium, opened
from tests.pictures.forward import forwarded

GAPS = ("memory_bytes", "cpu_millis", "pids")
NAMES = {"A": "Aarhus", "B": "Bergen", "C": "Coimbra"}
TESTS = tuple(Split(f"{name}-test", name, "test", 40) for name in ("B", "A", "C"))
TRAININGS = tuple(split for split in SPLITS if split.use == "train")


def main() -> None:
    """Take them."""
    configure(LogLevel.ERROR)
    cache = Path.home() / ".cache" / "dc-compute-demo"
    images = demo_images(cache / "images")
    runtime_dir, root = checkout_folders()
    memory = Path(os.environ["XDG_RUNTIME_DIR"]) / "pic"
    with podman_service(runtime_dir, root, name="pictures") as podman:
        made = found(cache / "pictures", tuple(NAMES.values()), runtime=on_podman(podman), memory=memory)
        made.admit([images.problem.digest, images.algo.digest, images.talkative.digest], accept_missing=GAPS)
        with running(made):
            settle_in(made, images, write_splits(cache / "pictures" / "plain"))
            shown = live_through(made, images)
            socket = memory / NAMES["C"] / "operator.sock"
            with forwarded(socket) as url, tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as out:
                take(url, shown, made, images, out)


def settle_in(made: Consortium, images: DemoImages, files: dict[str, Path]) -> None:
    """Images and sealed data to the storages. The held-out patients are shared out for a test at each hospital."""
    for image in images:
        made.publish_image(image.archive)
    head, *rows = files["C-held-out"].read_text().splitlines(keepends=True)
    for place, split in enumerate(TESTS):
        files[split.name] = made.folder / f"{split.name}.csv"
        files[split.name].write_text(head + "".join(rows[place * split.rows : (place + 1) * split.rows]))
    for split in (*TRAININGS, *TESTS):
        made.seal(files[split.name], split.ref, made.hospital(NAMES[split.hospital]), [split.use])


def live_through(made: Consortium, images: DemoImages) -> SignedOrder:
    """A past for the third hospital; the order that was done."""
    done = order(made, images, images.algo.digest, TRAININGS, TESTS)
    await_end(made, done, OrderState.DONE)
    at_c = [split for split in TRAININGS if split.hospital == "C"]
    await_end(made, order(made, images, images.talkative.digest, at_c, TESTS[2:]), OrderState.FAILED)
    with suppress(PeerRefused):  # an image that no policy lists
        order(made, images, Digest("sha256:" + "5" * 64), at_c, TESTS[2:])
    agent = made.hospital(NAMES["C"]).agent
    httpx.get(f"{agent.url}/v1/orders", verify=False)  # noqa: S501 - a stranger, who is to be refused
    doctor = (sys.executable, "-m", "agent", "--home", str(agent.folder), "doctor", "--quick")
    subprocess.run(doctor, check=False, stdout=subprocess.DEVNULL)
    return done


def order(
    made: Consortium, images: DemoImages, algo: Digest, train: Sequence[Split], test: Sequence[Split]
) -> SignedOrder:
    """A learnuplet, signed and sent."""
    desk = made.orchestrators[0]
    wanted = Learnuplet(
        id=OrderId(str(uuid4())),
        orchestrator=desk.key.keyid,
        problem=str(uuid4()),
        problem_image=ImageRef(str(uuid4()), images.problem.digest),
        algo_image=ImageRef(str(uuid4()), algo),
        model_start=None,
        model_end=str(uuid4()),
        rank=0,
        train_data=tuple(split.ref for split in train),
        test_data=tuple(split.ref for split in test),
        max_attempts=1,
        not_before=wire_time(now()),
        expires=in_an_hour(),
    )
    return issue(wanted, made.book(), made.client(desk))


def await_end(made: Consortium, signed: SignedOrder, end: OrderState) -> None:
    """Return when the first orchestrator knows how it ended."""

    def has_ended() -> bool:
        told = made.book().order(signed.order.id)
        return told is not None and told.state is end

    wait_for(has_ended, f"the end of order {signed.order.id}", timeout_s=240)


def take(url: str, done: SignedOrder, made: Consortium, images: DemoImages, out: tarfile.TarFile) -> None:
    """The pictures: the overview while a task runs, the done order, its last receipt."""
    going = order(made, images, images.algo.digest, [TRAININGS[2], TRAININGS[1]], TESTS)
    with chromium() as browser:
        with opened(browser, viewport={"width": 1120, "height": 780}) as page:
            page.goto(url)
            expect(page.locator("#running .steps")).to_be_visible(timeout=120_000)
            expect(page.locator("#checks .checks")).to_be_visible(timeout=20_000)
            page.emulate_media(reduced_motion="reduce")
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme=theme)
                keep(page, f"page-{theme}.png", out)
            page.set_viewport_size(PHONE)
            keep(page, "page-phone.png", out)
        await_end(made, going, OrderState.DONE)
        with opened(browser, viewport={"width": 1120, "height": 780}, reduced_motion="reduce") as page:
            page.goto(f"{url}/orders/{done.order.id}")
            page.locator("#chain").scroll_into_view_if_needed()
            keep(page, "page-order.png", out)


def keep(page: Page, name: str, out: tarfile.TarFile) -> None:
    """What is seen now, into the archive."""
    data = page.screenshot()
    about = tarfile.TarInfo(name)
    about.size = len(data)
    out.addfile(about, io.BytesIO(data))


if __name__ == "__main__":
    main()
