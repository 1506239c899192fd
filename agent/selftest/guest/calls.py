"""Raw system calls with arguments that would do something, were they let through."""

import ctypes
import errno
import mmap
import os
import platform
import struct

IS_X86 = platform.machine() == "x86_64"
NOT_HERE = -1
X32 = 0x40000000  # x32's calls are x86-64's with this bit

SIGCHLD = 17
CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWPID = 0x10000000, 0x00020000, 0x40000000, 0x20000000
AT_FDCWD = -100
S_IFIFO, S_IFCHR = 0o010000, 0o020000
PTRACE_SEIZE = 0x4206
SESSION_KEYRING, PROCESS_KEYRING = -3, -2
ZEROS = bytes(256)

Word = int | bytes | str

# Name: number on x86-64, on arm64, arguments. "pid" and "parent" stand for process ids, "iovec" for one into our own memory,
# "page" for 4096 bytes. Source: the kernel's unistd.h.
CALLS: dict[str, tuple[int, int, tuple[Word, ...]]] = {
    # namespaces
    "unshare": (272, 97, (CLONE_NEWUSER,)),
    "unshare-mount": (272, 97, (CLONE_NEWNS,)),
    "unshare-net": (272, 97, (CLONE_NEWNET,)),
    "setns": (308, 268, (0, CLONE_NEWUSER)),
    "clone-newuser": (56, 220, (CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0)),
    "clone-newpid": (56, 220, (CLONE_NEWUSER | CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0)),
    "clone3-newuser": (435, 435, (struct.pack("<8Q", CLONE_NEWUSER, 0, 0, 0, SIGCHLD, 0, 0, 0), 64)),
    # mounts and roots
    "mount": (165, 40, (b"tmpfs\0", b"/tmp\0", b"tmpfs\0", 0, 0)),
    "remount": (165, 40, (b"none\0", b"/data/train\0", b"\0", 0x1020, 0)),  # MS_REMOUNT | MS_BIND, writable
    "umount2": (166, 39, (b"/data/train\0", 2)),
    "pivot_root": (155, 41, (b"/tmp\0", b"/tmp\0")),
    "chroot": (161, 51, (b"/tmp\0",)),
    "fsopen": (430, 430, (b"tmpfs\0", 0)),
    "fsmount": (432, 432, (0, 0, 0)),
    "fsconfig": (431, 431, (0, 6, 0, 0, 0)),
    "fspick": (433, 433, (AT_FDCWD, b"/\0", 0)),
    "move_mount": (429, 429, (AT_FDCWD, b"/data\0", AT_FDCWD, b"/tmp\0", 0)),
    "open_tree": (428, 428, (AT_FDCWD, b"/\0", 1)),  # OPEN_TREE_CLONE
    "mount_setattr": (442, 442, (AT_FDCWD, b"/data/train\0", 0, struct.pack("<4Q", 0, 1, 0, 0), 32)),
    "name_to_handle_at": (303, 264, (AT_FDCWD, b"/\0", struct.pack("<Ii", 128, 0) + ZEROS, ZEROS, 0)),
    "open_by_handle_at": (304, 265, (0, struct.pack("<IiQ", 8, 1, 2), os.O_RDONLY)),
    # others' processes
    "ptrace": (101, 117, (PTRACE_SEIZE, "parent", 0, 0)),
    "process_vm_readv": (310, 270, ("parent", "iovec", 1, "iovec", 1, 0)),
    "process_vm_writev": (311, 271, ("parent", "iovec", 1, "iovec", 1, 0)),
    "pidfd_getfd": (438, 438, (0, 1, 0)),
    "kcmp": (312, 272, ("pid", "parent", 0, 0, 1)),
    "process_madvise": (440, 440, (0, "iovec", 1, 20, 0)),
    "move_pages": (279, 239, ("parent", 0, 0, 0, 0, 0)),
    "migrate_pages": (256, 238, ("parent", 1, ZEROS, ZEROS)),
    # keyrings
    "keyctl": (250, 219, (0, SESSION_KEYRING, 1)),
    "add_key": (248, 217, (b"user\0", b"selftest\0", b"x", 1, PROCESS_KEYRING)),
    "request_key": (249, 218, (b"user\0", b"selftest\0", 0, PROCESS_KEYRING)),
    # surface that exploits begin with
    "io_uring_setup": (425, 425, (8, ZEROS)),
    "io_uring_enter": (426, 426, (0, 0, 0, 0, 0, 0)),
    "io_uring_register": (427, 427, (-1, 9, ZEROS, 1)),
    "bpf": (321, 280, (0, struct.pack("<4I", 2, 4, 4, 1) + ZEROS, 72)),  # BPF_MAP_CREATE, an array
    "perf_event_open": (298, 241, (struct.pack("<IIQ", 1, 112, 0) + ZEROS, 0, -1, -1, 0)),
    "userfaultfd": (323, 282, (1,)),  # UFFD_USER_MODE_ONLY
    "fanotify_init": (300, 262, (0x200, 0)),
    "modify_ldt": (154, NOT_HERE, (0, "page", 4096)),
    "personality": (135, 92, (0x0040000,)),  # ADDR_NO_RANDOMIZE
    "vmsplice": (278, 75, (1, "iovec", 1, 0)),
    # the machine
    "init_module": (175, 105, (b"\x7fELF", 4, b"\0")),
    "finit_module": (313, 273, (0, b"\0", 0)),
    "kexec_load": (246, 104, (0, 0, 0, 0)),
    "reboot": (169, 142, (0xFEE1DEAD, 672274793, 0x89ABCDEF, 0)),  # only switches Ctrl-Alt-Del
    "swapon": (167, 224, (b"/tmp/swap\0", 0)),
    "acct": (163, 89, (b"/tmp/acct\0",)),
    "quotactl": (179, 60, (0x800001 << 8, b"/dev/null\0", 0, 0)),
    "syslog": (103, 116, (3, "page", 4096)),  # SYSLOG_ACTION_READ_ALL
    "iopl": (172, NOT_HERE, (3,)),
    "ioperm": (173, NOT_HERE, (0x80, 1, 1)),
    # clocks
    "clock_settime": (227, 112, (0, struct.pack("<2q", 1, 0))),
    "settimeofday": (164, 170, (struct.pack("<2q", 1, 0), 0)),
    "adjtimex": (159, 171, (struct.pack("<Iqq", 1, 1, 0) + ZEROS,)),
    "clock_adjtime": (305, 266, (0, struct.pack("<Iqq", 1, 1, 0) + ZEROS)),
    # privileges, devices, shared memory: no tripwire, but not let through
    "setuid": (105, 146, (0,)),
    "setgroups": (116, 159, (1, struct.pack("<I", 0))),
    "capset": (126, 91, (struct.pack("<II", 0x20080522, 0), struct.pack("<6I", *[0xFFFFFFFF] * 6))),
    "chown": (260, 54, (AT_FDCWD, b"/tmp\0", 0, 0, 0)),
    "sethostname": (170, 161, (b"owned\0", 5)),
    "mknod-device": (259, 33, (AT_FDCWD, b"/tmp/device\0", S_IFCHR | 0o666, 0x103)),  # /dev/null
    "mknod-fifo": (259, 33, (AT_FDCWD, b"/tmp/fifo\0", S_IFIFO | 0o666, 0)),
    "shmget": (29, 194, (0x5E1F, 4096, 0o1666)),
    "msgget": (68, 186, (0x5E1F, 0o1666)),
    "mq_open": (240, 180, (b"selftest\0", os.O_CREAT | os.O_RDWR, 0o666, 0)),
    "seccomp": (317, 277, (1, 0, ZEROS)),
    "setxattr": (188, 5, (b"/tmp\0", b"user.x\0", b"x", 1, 0)),
    "ioctl-tiocsti": (16, 29, (0, 0x5412, b"x")),  # types into the terminal
    # x32's entry
    "x32-getpid": (X32 | 39, NOT_HERE, ()),
    "x32-socket": (X32 | 41, NOT_HERE, (2, 1, 0)),
}


def call(name: str) -> str:
    """Make this call; its errno, or `done`."""
    on_x86, on_arm, words = CALLS[name]
    number = on_x86 if IS_X86 else on_arm
    if number == NOT_HERE:
        return "no such call on this machine"
    libc = ctypes.CDLL(None, use_errno=True)
    kept: list[object] = []
    result = libc.syscall(ctypes.c_long(number), *(_argument(word, kept) for word in words))
    if result == 0 and name.startswith("clone"):
        os._exit(0)  # the child that should not be
    return "done" if result != -1 else errno.errorcode.get(ctypes.get_errno(), str(ctypes.get_errno()))


def _argument(word: Word, kept: list[object]) -> object:
    match word:
        case int():
            return ctypes.c_long(word)
        case "pid":
            return ctypes.c_long(os.getpid())
        case "parent":
            return ctypes.c_long(os.getppid())
        case "page":
            kept.append(ctypes.create_string_buffer(4096))
        case "iovec":
            target = ctypes.create_string_buffer(64)
            kept += [target, ctypes.create_string_buffer(struct.pack("<QQ", ctypes.addressof(target), 64))]
        case bytes():
            kept.append(ctypes.create_string_buffer(word, len(word)))
        case _:
            raise ValueError(word)
    return kept[-1]


def int80() -> str:
    """getpid through the i386 entry, which has call numbers of its own: a filter for x86-64 alone would not see it."""
    if not IS_X86:
        return "no such call on this machine"
    code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20; int 0x80; ret
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    result = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    return "done" if result > 0 else errno.errorcode.get(-result, str(result))
