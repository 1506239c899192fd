"""`python -m agent.devkit.town [--runc] [COMMAND...]`: a consortium to try things by hand in, alive while COMMAND runs.

Three hospitals and two orchestrators as in the demo, with its images and sealed datasets. COMMAND, your shell unless you name
one, runs in their folder; when it ends, everybody ends. There lie:

agent-A, agent-B, agent-C          homes for `dc-compute --home`
orchestrator-1, orchestrator-2     settings for `python -m agent.devkit … --config orchestrator-1/server.toml`
order.json                         an order that nobody signed yet: trains at A and B, tested at C
roster.toml                        who is who
"""

import os
import subprocess
import sys
from pathlib import Path

from agent.devkit.consortium import Consortium, NotStarted, found, in_an_hour, running
from agent.devkit.demo.__main__ import ACCEPTED_GAPS, container_engine, settle_in
from agent.devkit.demo.data import SPLITS, write_splits
from agent.devkit.demo.guests import DemoImages, demo_images
from agent.devkit.demo.show import Show
from agent.devkit.demo.story import PROBLEM, Scene
from agent.devkit.podman_service import NoPodman
from agent.devkit.server import now
from agent.domain.ids import OrderId, wire_time
from agent.domain.orders import ImageRef, Learnuplet
from agent.domain.strict_json import encode
from agent.errors import AgentError
from agent.log import LogLevel, configure

ORDER = OrderId("7d2f4f7e-3f0e-4b39-9a64-0c3f7d3c5b01")
ALGO, PROBLEM_IMAGE = "5b6a1f0c-6c54-4a8f-8d5e-2f4b8d3c7a10", "5b6a1f0c-6c54-4a8f-8d5e-2f4b8d3c7a11"
MODEL = "5b6a1f0c-6c54-4a8f-8d5e-2f4b8d3c7a12"


def main(arguments: list[str]) -> int:
    """The exit code of COMMAND; 1 when nobody came to life."""
    is_on_runc = arguments[:1] == ["--runc"]
    command = arguments[is_on_runc:] or [os.environ.get("SHELL", "/bin/sh")]
    configure(LogLevel.ERROR)
    show = Show()
    cache = Path.home() / ".cache" / "dc-compute-demo"
    memory = Path(os.environ["XDG_RUNTIME_DIR"]) / "dct"
    try:
        show.chapter("Images for the problem and the algorithms, made here without any registry")
        images = demo_images(cache / "images")
        with container_engine(is_on_runc) as runtime:
            show.chapter(
                "Three hospitals, each a storage and an agent, and two orchestrators: eight programs"
            )
            consortium = found(cache / "town", ("A", "B", "C"), runtime=runtime, memory=memory)
            consortium.admit([image.digest for image in images], accept_missing=ACCEPTED_GAPS)
            with running(consortium):
                settle_in(Scene(consortium, images, write_splits(cache / "town" / "plain"), show))
                _lay_out(consortium, images)
                show.chapter(f"They answer until this ends: {' '.join(command)}")
                show.say(f"You are in {consortium.folder}")
                return subprocess.call(command, cwd=consortium.folder, env=_environment())
    except (AgentError, NoPodman, NotStarted) as error:
        show.say(f"[red]nobody is there:[/red] {error}")
        return 1


def _lay_out(consortium: Consortium, images: DemoImages) -> None:
    """The files for whoever tries things."""
    order = Learnuplet(
        id=ORDER,
        orchestrator=consortium.orchestrators[0].key.keyid,
        problem=PROBLEM,
        problem_image=ImageRef(PROBLEM_IMAGE, images.problem.digest),
        algo_image=ImageRef(ALGO, images.algo.digest),
        model_start=None,
        model_end=MODEL,
        rank=0,
        train_data=tuple(split.ref for split in SPLITS if split.name in {"A-spring", "B"}),
        test_data=tuple(split.ref for split in SPLITS if split.use == "test"),
        max_attempts=2,
        not_before=wire_time(now()),
        expires=in_an_hour(),
    )
    (consortium.folder / "order.json").write_bytes(encode(order))
    (consortium.folder / "roster.toml").write_text(consortium.roster.to_toml())


def _environment() -> dict[str, str]:
    """This program's own, with its commands `python` and `dc-compute` first and its sources where `-m` finds them."""
    root = Path(__file__).resolve().parents[2]
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(root)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
