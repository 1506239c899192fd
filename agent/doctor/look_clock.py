"""Asks the kernel whether something keeps its clock: adjtimex(2) with nothing to set, which anybody may call."""

import ctypes
import os

from agent.doctor.lines import Unknown

STA_UNSYNC, TIME_ERROR = 0x40, 5


class _Timex(ctypes.Structure):
    """The beginning of `struct timex`; what comes after is only given room."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def look_at_clock() -> bool | Unknown:
    """Whether the clock is synchronised."""
    told = _Timex()
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        state = libc.adjtimex(ctypes.byref(told))
    except (OSError, AttributeError) as cause:
        return Unknown(f"adjtimex: {cause}")
    if state < 0:
        return Unknown(f"adjtimex: {os.strerror(ctypes.get_errno())}")
    return state != TIME_ERROR and not told.status & STA_UNSYNC
