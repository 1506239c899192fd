"""Part `parallel`: tasks per minute at 1, 2, 4 and 8 workers, each a second of CPU, beside bare `runc run` at the same widths.

Real orders of one task each through the services as shipped; only the number of workers is set, and with it that of the
containers that may run at once: a restart for each width. The bare side runs the same program of the same image, so many at
once, and where the agent's guests have a cgroup of their own (cgroup v1) in one beside theirs: else the kernel would share the
cores out between the two kinds of groups, not between the runs. All of it shares the same cores: the storage, the
orchestrators and who sends the orders too, which elsewhere are other hosts.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from agent.bench.bare import BareRunc, unpacked
from agent.bench.engines import engines, podman_engine, quickest
from agent.bench.figures import Bench, Measured, Row, over
from agent.bench.images import bare_busy_words, busy_image
from agent.bench.town import Town, town
from agent.domain.ids import Digest

PART = "parallel"
WIDTHS: Mapping[int, int] = {1: 2, 2: 4, 4: 8, 8: 16}
SHORT_WIDTHS: Mapping[int, int] = {1: 1}  # what an agent has by itself: nothing is to be restarted
WIDEST_ROUNDS = 2  # of the width that the target is about; of the others one
CPU_S = 1
PLACES = 4  # for containers, by default: fewer workers leave some unused
MINUTE_S = 60.0
LOOK_EVERY_S = 0.1  # how long a task takes is read afterwards
OUTPUT_BYTES = 16 << 20


def measure(bench: Bench) -> Measured:
    """The part: at each width a batch by the agent and one by bare runc, one after the other."""
    widths = SHORT_WIDTHS if bench.is_short else WIDTHS
    archive, digest = busy_image(CPU_S)
    root = unpacked(archive, digest, bench.folder / "root")
    bare = BareRunc(bench.memory, root, bare_busy_words(CPU_S))
    with podman_engine() as socket:
        known = engines(socket)
        engine = quickest(known)
        images = ((archive, digest),)
        with town(bench, known[engine], hosts=("A",), images=images, output_bytes=OUTPUT_BYTES) as made:
            agents: dict[int, list[float]] = {}
            bares: dict[int, list[float]] = {}
            for width, tasks in widths.items():
                if not bench.is_short:
                    restart(made, width)
                    warm_up(made, digest, width)
                for _ in range(1 if bench.is_short or width < max(widths) else WIDEST_ROUNDS):
                    agents.setdefault(width, []).append(per_minute(tasks, agent_batch(made, digest, tasks)))
                    bares.setdefault(width, []).append(per_minute(tasks, bare_batch(bare, width, tasks)))
                    bench.say(f"{workers(width)}: {agents[width][-1]:.1f} /min, bare {bares[width][-1]:.1f}")
    return measured(engine, agents, bares)


def measured(engine: str, agents: Mapping[int, list[float]], bares: Mapping[int, list[float]]) -> Measured:
    """Two rows a width, and the figure of the widest."""
    rows = []
    for width, samples in agents.items():
        bare, agent = f"runc run, {width} at once", f"{workers(width)} ({engine})"
        rows.append(Row(part=PART, name=agent, unit="/min", samples=tuple(samples), baseline=bare))
        rows.append(Row(part=PART, name=bare, unit="/min", samples=tuple(bares[width])))
    widest = max(agents)
    ratio = over(agents[widest], bares[widest])
    return Measured(rows=tuple(rows), figures={"parallel_ratio": ratio})


def workers(width: int) -> str:
    """In words."""
    return f"{width} worker{'s' if width > 1 else ''}"


def per_minute(tasks: int, took_s: float) -> float:
    """The rate of a batch."""
    return tasks * MINUTE_S / took_s


def agent_batch(made: Town, digest: Digest, tasks: int) -> float:
    """Seconds from the first accepted order of so many to the last acknowledged report of an end."""
    sent = [made.order(["A"], image=digest) for _ in range(tasks)]
    left = list(sent)
    while left:  # the times stand in the logs: who looks seldom takes little from those who work
        time.sleep(LOOK_EVERY_S)
        made.read()
        left = [each for each in left if not made.is_over(each)]
    for each in sent:
        made.moment(each, "task.attested")  # none of them failed
    took_s = max(made.reported_s(each) for each in sent) - made.accepted_s(sent[0])
    made.forget()
    return took_s


def bare_batch(bare: BareRunc, width: int, tasks: int) -> float:
    """Seconds for so many runs, `width` at once."""
    with cgroup_beside_guests() as enter, ThreadPoolExecutor(width, initializer=enter) as pool:
        began_s = time.perf_counter()
        list(pool.map(lambda _: bare.run(), range(tasks)))
        return time.perf_counter() - began_s


@contextmanager
def cgroup_beside_guests() -> Iterator[Callable[[], None]]:
    """What brings the calling thread, and whatever it starts, into a cgroup beside those of the agent's guests; nothing where
    these have none, or where a thread cannot go alone (cgroup v2).
    """
    parent = os.environ.get("DC_COMPUTE_RUNTIME_CGROUP_PARENT")
    folder = Path(f"/sys/fs/cgroup/cpu{parent}/bench-{os.getpid()}")
    if not parent or not (folder.parent / "tasks").exists():
        yield lambda: None
        return
    folder.mkdir(exist_ok=True)

    def enter() -> None:
        (folder / "tasks").write_text(str(threading.get_native_id()))

    try:
        yield enter
    finally:
        with suppress(OSError):  # the kernel has not buried the last thread yet: the next batch uses it again
            folder.rmdir()


def warm_up(made: Town, digest: Digest, width: int) -> None:
    """Return when the restarted agent has proved its cage and has run a task of each worker: its places are made then."""
    agent_batch(made, digest, 1)
    agent_batch(made, made.image, width)


def restart(made: Town, width: int) -> None:
    """Let the agent begin anew with so many workers that train, and places for as many containers."""
    agent = made.consortium.hospital("A").agent
    told = agent.folder / "agent.toml"
    made.consortium.stop(agent)
    told.write_bytes(with_workers(told.read_bytes(), width))
    made.consortium.start(agent)
    made.consortium.wait_until_ready([agent])


def with_workers(settings: bytes, width: int) -> bytes:
    """These settings with so many workers."""
    tree = msgspec.toml.decode(settings)
    tree["workers"] = {"learn_tasks": width}
    tree["runtime"]["pool_size"] = max(width, PLACES)
    return msgspec.toml.encode(tree)
