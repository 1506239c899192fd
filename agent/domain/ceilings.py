"""Ceilings: the most that one task may use on this host. What enforces each is the runtime's business.

Source: docs/contracts/container.md, the row "ceilings" of the cage.
"""

from typing import Annotated

from msgspec import Meta, Struct

AtLeastOne = Annotated[int, Meta(ge=1, le=1 << 53)]


class Ceilings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every ceiling of one task. All are set: a ceiling that is not wanted does not exist."""

    wall_s: AtLeastOne  # seconds by the wall clock, all runs of the task together
    memory_bytes: AtLeastOne  # of all processes, without swap
    cpu_millis: AtLeastOne  # thousandths of a CPU
    pids: AtLeastOne  # processes and threads at once
    open_files: AtLeastOne  # file descriptors of one process
    output_bytes: AtLeastOne  # of everything the task leaves, before packing
    output_files: AtLeastOne  # number of files and folders the task leaves
    log_bytes: AtLeastOne  # of stdout and stderr that are kept
    tmp_bytes: AtLeastOne  # of /tmp in the container


DEFAULT_CEILINGS = Ceilings(
    wall_s=6 * 3600,
    memory_bytes=4 << 30,
    cpu_millis=2000,
    pids=256,
    open_files=1024,
    output_bytes=1 << 30,
    output_files=10_000,
    log_bytes=1 << 20,
    tmp_bytes=256 << 20,
)
