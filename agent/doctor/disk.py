"""Room on the disk, and whether the ledger is whole."""

from msgspec import Struct

from agent.doctor.lines import Check, Group, Unknown, gib

GROUP = Group("disk")

FEW_INODES = 10_000


class Space(Struct, frozen=True):
    """The file system below a folder. `inodes` is 0 where there is no fixed number of them."""

    name: str
    path: str
    free_bytes: int
    inodes: int
    free_inodes: int


class Ledger(Struct, frozen=True):
    """The ledger's file. `complaints`: what SQLite says is broken, empty when it is whole; None: there is no file yet."""

    path: str
    complaints: tuple[str, ...] | Unknown | None


def judge(spaces: dict[str, Space | Unknown], ledger: Ledger, low_disk_bytes: int) -> list[Check]:
    """`low_disk_bytes`: under which new orders are refused."""
    lines = []
    for name, space in spaces.items():
        lines += [GROUP.unknown(name, space)] if isinstance(space, Unknown) else _space(space, low_disk_bytes)
    return [*lines, _ledger(ledger)]


def _space(space: Space, low_disk_bytes: int) -> list[Check]:
    largest = f"du -xh --max-depth=2 {space.path} | sort -h | tail"
    seen = f"{gib(space.free_bytes)} free at {space.path}"
    if space.free_bytes < low_disk_bytes:
        lines = [
            GROUP.fail(
                space.name, f"{seen}, the low mark is {gib(low_disk_bytes)}: orders are refused", largest
            )
        ]
    elif space.free_bytes < 2 * low_disk_bytes:
        lines = [GROUP.warn(space.name, f"{seen}, the low mark is {gib(low_disk_bytes)}", largest)]
    else:
        lines = [GROUP.ok(space.name, seen)]
    if space.inodes and space.free_inodes < FEW_INODES:
        name, few = f"{space.name} inodes", f"du -x --inodes --max-depth=2 {space.path} | sort -n | tail"
        make = GROUP.fail if space.free_inodes < FEW_INODES // 10 else GROUP.warn
        lines.append(make(name, f"{space.free_inodes} of {space.inodes} are free", few))
    return lines


def _ledger(ledger: Ledger) -> Check:
    match ledger.complaints:
        case None:
            return GROUP.note("ledger", f"{ledger.path} is not there yet: made at the first start")
        case Unknown() as why:
            return GROUP.unknown("ledger", why)
        case ():
            return GROUP.ok("ledger", "opens, and is whole")
        case complaints:
            mend = f"sqlite3 {ledger.path} .recover > {ledger.path}.sql  # stop dc-compute.target first, and keep the old file"
            return GROUP.fail("ledger", f"broken: {complaints[0][:120]}", mend)
