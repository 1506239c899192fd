"""Attempts made inside one training run: the network, the kernel's calls, what can be seen, what can be written. Data only."""

# ruff: noqa: S108 - paths of the container

import re

from agent.selftest.probe import Probe, Scene

KILLED = "killed by SIGSYS"
NO_SUCH_CALL = "ENOSYS"
NO_FAMILY = "EAFNOSUPPORT"
REFUSED = "ECONNREFUSED"
READ_ONLY = "EROFS"
DENIED, DENIED_PATTERN = "EROFS or EACCES", "EROFS|EACCES|EPERM|ENOENT"
HIDDEN, HIDDEN_PATTERN = "empty, or not there", "empty|ENOENT|EACCES|EPERM"
ANOTHER_ID = "another id than the agent's"
NOT_HERE = "no such call on this machine"
X86_ONLY = frozenset({"modify_ldt", "iopl", "ioperm", "x32-getpid", "x32-socket"})


def _inside(name: str, attempt: str, expected: str, *act: str, pattern: str | None = None) -> Probe:
    return Probe(
        name=name,
        attempt=attempt,
        expected=expected,
        pattern=pattern,
        scene=Scene.INSIDE,
        act=act,
        is_quick=True,
    )


def _call(name: str, attempt: str, expected: str = KILLED) -> Probe:
    pattern = f"{re.escape(expected)}|{NOT_HERE}" if name in X86_ONLY else None
    return _inside(name, attempt, expected, "call", name, pattern=pattern)


def _hidden(name: str, path: str, what: str) -> Probe:
    return _inside(name, f"read {what} ({path})", HIDDEN, "read", path, pattern=HIDDEN_PATTERN)


def _denied(name: str, attempt: str, *act: str) -> Probe:
    return _inside(name, attempt, DENIED, *act, pattern=DENIED_PATTERN)


# ------------------------------------------------------------------ network

FAMILIES = (
    ("inet", 2, "an internet socket"),
    ("inet6", 10, "an IPv6 socket"),
    ("netlink", 16, "a netlink socket, which configures the kernel's network"),
    ("packet", 17, "a packet socket, which reads the wire"),
    ("vsock", 40, "a vsock socket, which reaches the hypervisor"),
    ("alg", 38, "a socket of the kernel's crypto, where many exploits began"),
    ("bluetooth", 31, "a Bluetooth socket"),
    ("xdp", 44, "an XDP socket"),
    ("key", 15, "a key management socket"),
    ("can", 29, "a CAN bus socket"),
    ("tipc", 30, "a TIPC socket"),
    ("rds", 21, "an RDS socket"),
    ("kcm", 41, "a KCM socket"),
    ("qipcrtr", 42, "a Qualcomm router socket"),
    ("smc", 43, "an SMC socket"),
)

NETWORK = (
    *(
        _inside(f"family-{name}", f"open {words}", NO_FAMILY, "family", str(number))
        for name, number, words in FAMILIES
    ),
    _inside("family-others", "open a socket of every other family", NO_FAMILY, "other-families"),
    _inside("socketpair-inet", "open a pair of internet sockets", NO_FAMILY, "socketpair", "2"),
    _inside("metadata-address", "reach the cloud's metadata", NO_FAMILY, "connect", "169.254.169.254", "80"),
    _inside("host-loopback", "reach a service on the host's loopback", NO_FAMILY, "connect", "127.0.0.1", "$tcp"),
    _inside("name-server", "ask a name server, and so send data out", NO_FAMILY, "ask-name", "127.0.0.1", "$udp"),
    _inside("host-abstract-socket", "reach an abstract Unix socket of the host", REFUSED, "connect-abstract", "$abstract"),
    _inside("control-sockets", "find the socket of an engine or of the init system", "none there", "control-sockets"),
    _inside("interfaces", "find a network interface", "lo", "interfaces"),
)  # fmt: skip

# ------------------------------------------------------------------ system calls

CALLS = (
    _call("unshare", "make a user namespace"),
    _call("unshare-mount", "make a mount namespace"),
    _call("unshare-net", "make a network namespace"),
    _call("setns", "enter another namespace"),
    _call("clone-newuser", "clone into a user namespace", NO_SUCH_CALL),
    _call("clone-newpid", "clone into user and process namespaces", NO_SUCH_CALL),
    _call("clone3-newuser", "clone3 into a user namespace, its flags hidden in memory", NO_SUCH_CALL),
    _call("mount", "mount a file system"),
    _call("remount", "mount the inputs again, writable"),
    _call("umount2", "unmount the inputs"),
    _call("pivot_root", "take another root"),
    _call("chroot", "change the root"),
    _call("fsopen", "open a file system (the new mount calls)"),
    _call("fsconfig", "configure one"),
    _call("fsmount", "mount one"),
    _call("fspick", "pick the root's file system to change it"),
    _call("move_mount", "move a mount"),
    _call("open_tree", "clone a tree of mounts"),
    _call("mount_setattr", "take read-only off the inputs"),
    _call("name_to_handle_at", "name a file past the mount namespace"),
    _call("open_by_handle_at", "open a file past the mount namespace (Shocker)"),
    _call("ptrace", "trace another process"),
    _call("process_vm_readv", "read another process's memory"),
    _call("process_vm_writev", "write another process's memory"),
    _call("pidfd_getfd", "take another process's descriptor"),
    _call("kcmp", "compare kernel objects of another process"),
    _call("process_madvise", "advise on another process's memory"),
    _call("move_pages", "move another process's pages"),
    _call("migrate_pages", "migrate another process's pages"),
    _call("keyctl", "read the session's keyring"),
    _call("add_key", "add a key to a keyring"),
    _call("request_key", "request a key"),
    _call("io_uring_setup", "set up an io_uring, which acts behind a filter's back"),
    _call("io_uring_enter", "enter an io_uring"),
    _call("io_uring_register", "register with an io_uring"),
    _call("bpf", "make a BPF map"),
    _call("perf_event_open", "count the processor's events"),
    _call("userfaultfd", "handle page faults, which holds the kernel still in the middle"),
    _call("fanotify_init", "watch the file system"),
    _call("modify_ldt", "change the local descriptor table"),
    _call("personality", "switch address randomisation off"),
    _call("vmsplice", "splice pages into a pipe"),
    _call("init_module", "load a kernel module"),
    _call("finit_module", "load a kernel module from a file"),
    _call("kexec_load", "load another kernel"),
    _call("reboot", "have a say in the host's reboot"),
    _call("swapon", "add swap"),
    _call("acct", "write process accounting"),
    _call("quotactl", "change quotas"),
    _call("syslog", "read the kernel's log"),
    _call("iopl", "reach every port of the machine"),
    _call("ioperm", "reach one port of the machine"),
    _call("clock_settime", "set the clock"),
    _call("settimeofday", "set the time of day"),
    _call("adjtimex", "slew the clock"),
    _call("clock_adjtime", "slew one of the clocks"),
    _call("setuid", "become root", NO_SUCH_CALL),
    _call("setgroups", "join root's group", NO_SUCH_CALL),
    _call("capset", "take every capability", NO_SUCH_CALL),
    _call("chown", "give /tmp to root", NO_SUCH_CALL),
    _call("sethostname", "rename the host", NO_SUCH_CALL),
    _call("mknod-device", "make a device", NO_SUCH_CALL),
    _call("mknod-fifo", "make a fifo", NO_SUCH_CALL),
    _call("shmget", "open System V shared memory", NO_SUCH_CALL),
    _call("msgget", "open a System V message queue", NO_SUCH_CALL),
    _call("mq_open", "open a POSIX message queue", NO_SUCH_CALL),
    _call("seccomp", "load a filter of its own, with its flags", NO_SUCH_CALL),
    _call("setxattr", "set an extended attribute", NO_SUCH_CALL),
    _call("ioctl-tiocsti", "type into the terminal", NO_SUCH_CALL),
    _call("x32-getpid", "call through x32's entry"),
    _call("x32-socket", "open an internet socket through x32's entry"),
    _inside(
        "int80",
        "call through the i386 entry (int 0x80)",
        KILLED,
        "int80",
        pattern=f"{KILLED}|killed by SIGSEGV|{NOT_HERE}",  # a kernel without that entry faults
    ),
)

# ------------------------------------------------------------------ what can be seen, and what can be written


LEAKS = (
    _inside("processes", "list processes of others, with their environments", "no other", "processes"),
    _inside("first-process", "look at process 1", "this program", "first-process"),
    _inside("signals", "send a signal to every process id", "nobody answers", "signals"),
    _inside("descriptors", "use a descriptor that the engine left open", "none", "descriptors"),
    _inside("environment", "find a secret in the environment", "none", "environment", "$env"),
    _inside("host-name", "learn the host's name", "nowhere", "search", "$host"),
    _inside("host-mounts", "find a mount that was not given", "none", "mounts", "$mounts"),
    _inside("devices", "find a device of disks, memory or the kernel", "none there", "devices"),
    _hidden("kallsyms", "/proc/kallsyms", "the kernel's addresses"),
    _hidden("kcore", "/proc/kcore", "the kernel's memory"),
    _hidden("kernel-keys", "/proc/keys", "the kernel's keys"),
    _hidden("boot-line", "/proc/cmdline", "the kernel's boot line"),
    _hidden("kernel-config", "/proc/config.gz", "the kernel's configuration"),
    _hidden("interrupts", "/proc/interrupts", "the interrupts, which tell keystrokes"),
    _hidden("sched-debug", "/proc/sched_debug", "the scheduler's view of all tasks"),
    _hidden("timers", "/proc/timer_list", "the timers of all tasks"),
    _hidden("scsi", "/proc/scsi", "the disks"),
    _hidden("acpi", "/proc/acpi", "ACPI"),
    _hidden("firmware", "/sys/firmware", "the firmware's tables"),
    _hidden("page-counts", "/proc/kpagecount", "the use of physical pages"),
)

WRITES = (
    _inside("root-write", "write to the root file system, where modes allow it", READ_ONLY, "write", "/opt/open/x"),
    _denied("program-write", "replace a program that anybody may write", "write", "/opt/open/program"),
    _denied("sysctl-write", "change a setting of the kernel", "write", "/proc/sys/net/ipv4/ip_default_ttl", "63"),
    _denied("core-pattern-write", "have cores piped to its own program", "write", "/proc/sys/kernel/core_pattern", "|/tmp/x"),
    _denied("sysrq-write", "press the magic key", "write", "/proc/sysrq-trigger", "h"),
    _denied("sysfs-write", "write to /sys", "write", "/sys/kernel/mm/ksm/run", "0"),
    _denied("cgroup-write", "move itself to another cgroup", "write", "/sys/fs/cgroup/cgroup.procs", "0"),
    _inside("input-write", "change an input, where modes allow it", READ_ONLY, "write", "/data/train/input"),
    _inside("input-remove", "remove an input", READ_ONLY, "remove", "/data/train/input"),
    _inside("input-add", "add a file to its inputs", READ_ONLY, "write", "/data/train/more"),
    _inside("input-kept", "all that: the inputs as the host sees them afterwards", "as they were"),
    _inside("touch", "set a time on its own file, as everybody may", "done", "touch", "/data/model/old"),
    _inside("own-id", "be a user of the host: whose are its files?", ANOTHER_ID, "write", "/data/model/owned"),
    _inside("capabilities", "hold a capability", "0" * 16, "status", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
    _inside("no-new-privileges", "be able to gain privileges", "1", "status", "NoNewPrivs"),
    _inside("set-id-program", "run a set-id program of the image", "user 1000", "run-set-id"),
    _inside("run-from-tmp", "run a program from /tmp", "EACCES", "run-from", "/tmp"),
    _inside("run-from-shm", "run a program from /dev/shm", "EACCES", "run-from", "/dev/shm"),
    _inside("run-from-output", "run a program from its output folder", "EACCES", "run-from", "/data/model"),
    _inside("core", "leave a core with the data in it", "no core", "core"),
)  # fmt: skip

INSIDE = (*NETWORK, *CALLS, *LEAKS, *WRITES)
