"""Guest program of the booted systems: trains for as many seconds as its data say, or until SIGUSR1, then leaves a model."""

import os
import signal
import time
from pathlib import Path


class Told(Exception):
    """Somebody wants it to end."""


def tell(_number: int, _frame: object) -> None:
    raise Told


try:
    signal.signal(signal.SIGUSR1, tell)
    (data,) = [name for name in os.listdir("/data/train") if name != "pred"]
    time.sleep(float(Path("/data/train", data).read_text()))
except Told:
    pass
Path("/data/model/done").write_text("yes\n")
