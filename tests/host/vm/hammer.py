"""Calls an installed agent again and again, at both doors, until its input ends; then says in one JSON line what came of it.

    {"network": {"answered": n, "refused": n, "cut": n}, "operator": {…}, "longest_s": s}

refused: nobody listened. cut: somebody did, and the connection ended without an answer. Every call is a new connection.
"""

import json
import socket
import ssl
import sys
import threading
import time
from collections import Counter

PATIENCE_S = 60.0
REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


def call(door: str, tls: ssl.SSLContext) -> str:
    """How one call ended."""
    family = socket.AF_INET if door == "network" else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_STREAM) as plain:
        plain.settimeout(PATIENCE_S)
        try:
            plain.connect(("127.0.0.1", 8443) if door == "network" else "/run/dc-compute/operator.sock")
        except (ConnectionRefusedError, FileNotFoundError):
            return "refused"
        try:
            stream = tls.wrap_socket(plain) if door == "network" else plain
            stream.sendall(REQUEST)
            return "answered" if stream.recv(64).startswith(b"HTTP/1.1 200") else "cut"
        except (OSError, ssl.SSLError):
            return "cut"


def main() -> None:
    is_over, seen = threading.Event(), {door: Counter[str]() for door in ("network", "operator")}
    longest = [0.0]

    def keep_calling(door: str) -> None:
        tls = context()
        while not is_over.is_set():
            began = time.monotonic()
            seen[door][call(door, tls)] += 1
            longest[0] = max(longest[0], time.monotonic() - began)

    threads = [threading.Thread(target=keep_calling, args=(door,)) for door in seen for _ in range(2)]
    for thread in threads:
        thread.start()
    sys.stdout.write("calling\n")
    sys.stdout.flush()
    sys.stdin.read()
    is_over.set()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps({**seen, "longest_s": round(longest[0], 2)}) + "\n")


if __name__ == "__main__":
    main()
