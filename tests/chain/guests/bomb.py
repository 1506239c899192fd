"""Guest program of the chain tests: takes memory for ever."""

kept = []
while True:
    kept.append(bytearray(b"x") * (1 << 20))
