"""Guest program of the demo: an algorithm that wants to tell somebody outside what it learns."""

import socket

with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as line:
    line.connect(("192.0.2.1", 443))
