"""What can be seen of the world outside: its network, processes, kernel, files and secrets."""

import errno
import os
import re
import socket
import struct
from pathlib import Path

# What an engine brings along; docs/contracts/container.md says what may be there.
ENGINE_POINTS = frozenset(
    {
        "/",
        "/etc/group",
        "/etc/hostname",
        "/etc/passwd",
        "/run/.containerenv",
        "/tmp",  # noqa: S108
    }
)
KERNEL_POINTS = ("/proc", "/sys", "/dev")
NAMED_FAMILIES = frozenset({1, 2, 10, 15, 16, 17, 21, 29, 30, 31, 38, 40, 41, 42, 43, 44})
SOCKET_TYPES = (1, 2, 3, 5)  # stream, datagram, raw, packets in sequence
CONTROL_SOCKETS = (
    "/run/podman/podman.sock",
    "/run/dc-compute/podman/podman.sock",
    "/run/dc-compute/operator.sock",
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/systemd/private",
    "/run/dbus/system_bus_socket",
)
DEVICES = (
    "mem",
    "kmem",
    "port",
    "kmsg",
    "kvm",
    "fuse",
    "loop-control",
    "net/tun",
    "sda",
    "vda",
    "nvme0n1",
    "vhost-net",
)
LAST_PID = 1 << 16

# ------------------------------------------------------------------ network


def family(number: str) -> str:
    """Open a socket of this address family, in every type."""
    return _opened(int(number))


def other_families() -> str:
    """The same for every family that has no probe of its own."""
    seen = {_opened(number) for number in range(64) if number not in NAMED_FAMILIES}
    return ", ".join(sorted(seen))


def _opened(number: int) -> str:
    seen = []
    for kind in SOCKET_TYPES:
        try:
            socket.socket(number, kind).close()
            return f"a socket of type {kind} was opened"
        except OSError as error:
            seen.append(error)
    return _name(seen[0]) if len({error.errno for error in seen}) == 1 else ", ".join(map(_name, seen))


def socketpair(number: str) -> str:
    """A pair of sockets of this family."""
    for end in socket.socketpair(int(number)):
        end.close()
    return "done"


def connect(host: str, port: str) -> str:
    """Reach this address by TCP."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as end:
        end.settimeout(2)
        end.connect((host, int(port)))
    return "connected"


def ask_name(host: str, port: str) -> str:
    """Ask a name server there, by UDP: how data leaves where only names are resolved."""
    question = (
        struct.pack(">6H", 1, 0x100, 1, 0, 0, 0) + b"\x06secret\x07example\x00" + struct.pack(">2H", 1, 1)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.sendto(question, (host, int(port)))
    return "sent"


def connect_abstract(name: str) -> str:
    """Reach an abstract Unix socket, which belongs to a network namespace and to no file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.settimeout(2)
        end.connect("\0" + name)
    return "connected"


def control_sockets() -> str:
    """Reach the sockets by which engines and init systems are commanded."""
    found = [path for path in CONTROL_SOCKETS if os.path.exists(path)]
    return "found " + ", ".join(found) if found else "none there"


def interfaces() -> str:
    """The network's interfaces."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    return ", ".join(sorted(line.split(":")[0].strip() for line in lines))


# ------------------------------------------------------------------ processes


def processes() -> str:
    """Processes other than this one: their command lines and environments."""
    others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return f"{len(others)} others: {_words(others[0])}" if others else "no other"


def _words(pid: str) -> str:
    try:
        return Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:80]
    except OSError as error:
        return _name(error)


def first_process() -> str:
    """Who is process 1 here: a program of the host would tell its environment, root and memory."""
    return "this program" if os.getpid() == 1 else f"another: {_words('1')}"


def signals() -> str:
    """Ask every process id whether it would take a signal of ours."""
    found = []
    for pid in range(1, LAST_PID):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        except PermissionError:
            pass
        if pid != os.getpid():
            found.append(pid)
    return f"{len(found)} answer" if found else "nobody answers"


def id_map() -> str:
    """The ids of the user namespace above that are ours: begin and count."""
    _, outside, count = Path("/proc/self/uid_map").read_text().split()
    return f"{outside} {count}"


def status(*names: str) -> str:
    """Lines of /proc/self/status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return ", ".join(sorted({lines[name].strip() for name in names}))


def descriptors() -> str:
    """Descriptors beside the three of every program: one into the host's file system is a way out (CVE-2024-21626)."""
    listing = os.open("/proc/self/fd", os.O_RDONLY)
    found = {int(name) for name in os.listdir(listing)} - {0, 1, 2, listing}
    os.close(listing)
    told = []
    for number in sorted(found):
        try:
            told.append(f"{number} is {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:  # the listing's own
            continue
    return "; ".join(told) or "none"


# ------------------------------------------------------------------ files and names


def read(path: str) -> str:
    """What this file or folder tells."""
    if os.path.isdir(path):
        names = os.listdir(path)
        return f"{len(names)} names: {sorted(names)[0]}" if names else "empty"
    with open(path, "rb") as file:
        content = file.read(1 << 16)
    return f"{len(content)} bytes" if content else "empty"


def search(*words: str) -> str:
    """Places that name one of these words."""
    if not words:
        return "nowhere"
    texts = {"uname": " ".join(os.uname()[1:2]), "the environment": repr(sorted(os.environ.items()))}
    for path in (
        "/etc/hostname",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/domainname",
        "/proc/mounts",
        "/proc/cmdline",
    ):
        try:
            texts[path] = Path(path).read_text(errors="replace")
        except OSError:
            continue
    names = re.compile("|".join(rf"(?<![\w.-]){re.escape(word)}(?![\w.-])" for word in words))
    found = [place for place, text in texts.items() if names.search(text)]
    return "named in " + ", ".join(found) if found else "nowhere"


def mounts(*given: str) -> str:
    """Mounts beside those that were given and the engine's own."""
    points = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    foreign = [point for point in points - ENGINE_POINTS - set(given) if not point.startswith(KERNEL_POINTS)]
    return ", ".join(sorted(foreign)) or "none"


def devices() -> str:
    """Devices that reach memory, disks or the kernel."""
    found = [name for name in DEVICES if os.path.exists(f"/dev/{name}")]
    return "found " + ", ".join(found) if found else "none there"


def environment(*expected: str) -> str:
    """Variables beside these."""
    foreign = sorted(set(os.environ) - set(expected))
    return ", ".join(foreign) or "none"


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))
