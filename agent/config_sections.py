"""The settings: one frozen Struct for each section, and what each key is for. Reading them is `config.py`'s business.

A key's words, range and type stand here once: `dc-compute config reference`, docs/settings.md and the file that
`init` writes are made of them. A name ends in its unit: `_s` seconds, `_days` days, `_bytes` bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, get_type_hints

from msgspec import Meta, Struct

from agent.errors import BadSettings

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 50)]
Threads = Annotated[int, Meta(ge=1, le=64)]


class Identity(Struct, frozen=True, kw_only=True):
    """Who this agent is."""

    key: Annotated[
        Path,
        Meta(
            description="The agent's Ed25519 key, PEM, for its user alone. Its public half stands in the roster."
        ),
    ]


class Listen(Struct, frozen=True, kw_only=True):
    """Where it is called."""

    host: Annotated[str, Meta(description="The address to listen on for orchestrators and agents.")] = (
        "0.0.0.0"  # noqa: S104 - peers and orchestrators call it from other hosts, by signed requests
    )
    port: Annotated[int, Meta(ge=0, le=65535, description="The port to listen on; 0: any free one.")] = 8443
    names: Annotated[
        tuple[str, ...],
        Meta(
            description="Further `host` or `host:port` by which it may be dialled, beside its roster address."
        ),
    ] = ()
    tls_cert: Annotated[Path, Meta(description="The certificate it serves, PEM, then those above it.")]
    tls_key: Annotated[Path, Meta(description="The key of that certificate, PEM, for its user alone.")]
    operator_socket: Annotated[
        Path,
        Meta(
            description="The operator's Unix socket: 0600 in a folder 0700, with `operator_group` 0660 in a folder 0750."
        ),
    ]
    operator_group: Annotated[
        str | None,
        Meta(description="A group whose members may use the operator's socket; not set: its owner alone."),
    ] = None
    status_address: Annotated[
        Annotated[str, Meta(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}(?!\n)$")] | None,
        Meta(
            description="`host:port` where the status page is shown to holders of a client certificate; not set: nowhere."
        ),
    ] = None
    status_client_ca: Annotated[
        Path | None,
        Meta(description="The authorities, PEM, of those certificates; goes with `status_address`."),
    ] = None

    def __post_init__(self) -> None:
        if (self.status_address is None) != (self.status_client_ca is None):
            raise BadSettings(
                "[listen] status_address and status_client_ca go together: the page is shown to nobody without a certificate"
            )


class Trust(Struct, frozen=True, kw_only=True):
    """Whom it knows, and what may run here."""

    roster: Annotated[Path, Meta(description="Whom it knows: keys, roles, addresses.")]
    policy: Annotated[Path, Meta(description="What may run here. An empty policy runs nothing.")]


class Paths(Struct, frozen=True, kw_only=True):
    """Where it keeps things, on disk."""

    data: Annotated[Path, Meta(description="Where ledger, queues and keys lie.")]
    spool: Annotated[Path, Meta(description="Images on their way from storage.")]

    @property
    def ledger(self) -> Path:
        return self.data / "ledger.sqlite"

    @property
    def queues(self) -> Path:
        return self.data / "queues.sqlite"

    @property
    def hands(self) -> Path:
        """A lock for each job that a worker has in hand."""
        return self.data / "hands"

    @property
    def images(self) -> Path:
        """What is remembered of images that Podman has loaded."""
        return self.data / "images"

    @property
    def roots(self) -> Path:
        """Images as they are unpacked for runc."""
        return self.data / "roots"

    @property
    def services(self) -> Path:
        """Where each service that runs tells of itself."""
        return self.data / "services"

    @property
    def selftest(self) -> Path:
        """Where the image of the self-test's guest stays."""
        return self.data / "selftest"


class Workspaces(Struct, frozen=True, kw_only=True):
    """Where tasks run, in memory."""

    root: Annotated[
        Path,
        Meta(description="Where tasks run. It must lie in memory (tmpfs): dataset plaintext lies there."),
    ]


class RuntimeSection(Struct, frozen=True, kw_only=True):
    """The container engine."""

    engine: Annotated[
        str,
        Meta(
            pattern=r"^(auto|podman|runc)(?!\n)$",
            description="podman, runc, or auto: Podman where its socket answers, else runc.",
        ),
    ] = "auto"
    podman_socket: Annotated[Path, Meta(description="Where Podman's service listens.")]
    seccomp_dir: Annotated[Path, Meta(description="The folder of the seccomp profiles.")]
    run_dir: Annotated[Path, Meta(description="What runc's runs are known by. In memory.")]
    cgroup_parent: Annotated[
        str,
        Meta(
            description="A cgroup that root gave to the agent's user for runc's runs: a path below the cgroup root."
        ),
    ] = ""
    pool_size: Annotated[
        int,
        Meta(
            ge=2,  # the self-test holds two against each other
            le=64,
            description="How many containers may run at once on this host; each runs under user ids of its own.",
        ),
    ] = 4


class Limits(Struct, frozen=True, kw_only=True):
    """How much it takes on."""

    queue_limit: Annotated[
        int, Meta(ge=1, le=100_000_000, description="Jobs that wait; above it orders are refused.")
    ] = 1000
    low_disk_bytes: Annotated[
        Bytes, Meta(description="Free room on disk below which no order is accepted.")
    ] = 1 << 30
    max_model_bytes: Annotated[Bytes, Meta(description="The largest model that is taken.")] = 4 << 30
    max_image_bytes: Annotated[Bytes, Meta(description="The largest archive of an image that is taken.")] = (
        16 << 30
    )
    image_days: Annotated[
        int, Meta(ge=1, le=36500, description="A loaded image leaves when unused for so long.")
    ] = 30
    images_bytes: Annotated[
        Bytes,
        Meta(
            description="Loaded images leave, those unused longest first, while they take more than this together."
        ),
    ] = 64 << 30
    log_days: Annotated[
        int, Meta(ge=1, le=36500, description="How long job logs are kept after the job ended.")
    ] = 30
    order_days: Annotated[
        int,
        Meta(
            ge=1,
            le=36500,
            description="How long orders are kept after the last thing happened to them, and in any case until they expired.",
        ),
    ] = 365
    skew_s: Annotated[int, Meta(ge=0, le=300, description="How far clocks may differ.")] = 30
    lease_s: Annotated[int, Meta(ge=3, le=3600, description="How long a silent worker keeps its task.")] = 60


class Timeouts(Struct, frozen=True, kw_only=True):
    """Of calls to storage, orchestrators and peers."""

    connect_s: Annotated[Seconds, Meta(description="For a connection.")] = 10.0
    read_s: Annotated[Seconds, Meta(description="For the next bytes.")] = 30.0
    total_s: Annotated[Seconds, Meta(description="For a whole call.")] = 120.0
    transfer_s: Annotated[Seconds, Meta(description="For a whole call with a big body.")] = 6 * 3600.0


class Workers(Struct, frozen=True, kw_only=True):
    """Threads by queue in one `dc-compute work`."""

    learnuplets: Annotated[Threads, Meta(description="Threads that place training orders.")] = 1
    learn_tasks: Annotated[Threads, Meta(description="Threads that train.")] = 1
    test_tasks: Annotated[Threads, Meta(description="Threads that test.")] = 1
    preduplets: Annotated[Threads, Meta(description="Threads that place prediction orders, and predict.")] = 1
    deliveries: Annotated[Threads, Meta(description="Threads that tell others.")] = 2
    grace_s: Annotated[
        Seconds,
        Meta(description="How long a worker that is told to stop waits for what it does, containers apart."),
    ] = 5.0


class Reconcile(Struct, frozen=True, kw_only=True):
    """When others are asked what a lost message hid."""

    first_s: Annotated[Seconds, Meta(description="From a start until others are asked, about.")] = 60.0
    every_s: Annotated[Seconds, Meta(description="Between two rounds, about.")] = 900.0


class LogSection(Struct, frozen=True, kw_only=True):
    """How it speaks."""

    level: Annotated[
        str,
        Meta(
            pattern=r"^(debug|info|warning|error)(?!\n)$",
            description="The least that is written: debug, info, warning, error.",
        ),
    ] = "info"
    format: Annotated[
        str,
        Meta(
            pattern=r"^(auto|json|console)(?!\n)$",
            description="auto, json, console; auto: console on a terminal, JSON elsewhere.",
        ),
    ] = "auto"


class Settings(Struct, frozen=True, kw_only=True):
    """All settings of one agent. `home` is the folder they came from."""

    home: Path
    identity: Identity
    listen: Listen
    trust: Trust
    paths: Paths
    workspace: Workspaces
    runtime: RuntimeSection
    limits: Limits
    timeouts: Timeouts
    workers: Workers
    reconcile: Reconcile
    log: LogSection


SECTIONS: Mapping[str, type[Struct]] = {
    name: kind for name, kind in get_type_hints(Settings, include_extras=True).items() if name != "home"
}

# What a running agent takes over when it is told to reload; everything else waits for a restart. Of `trust` and the certificate
# it rereads what the files hold, not where they lie.
RELOADED = frozenset({("log", "level"), ("log", "format"), ("listen", "names")})
