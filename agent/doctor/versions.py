"""Versions of the kernel, the engine and its helpers, and what this program itself stands on, against known escapes.

Source: the upstream projects' release notes. A distribution carries fixes back under old numbers, so a build of one whose
number is below upstream's fix is told and not judged: only the distribution knows.
"""

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct

from agent.doctor.lines import Check, Group, Unknown

GROUP = Group("versions")

Numbers = tuple[int, ...]

LEAST_KERNEL: Numbers = (5, 13)  # rootless overlay and everything that the cage asks of a kernel
LEAST_PYTHON: Numbers = (3, 11)
LEAST_SQLITE: Numbers = (3, 35)


class Fix(Struct, frozen=True):
    """Where upstream closed what a hostile job could use: the first fixed release of each series that got one, lowest first.

    A series above the last is fixed; one below the first, or between two of them, is not.
    """

    first_fixed: tuple[Numbers, ...]
    what: str
    package: str


FIXES: Mapping[str, Fix] = {
    "runc": Fix(((1, 2, 8), (1, 3, 3), (1, 4, 0)), "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881", "runc"),
    "crun": Fix(((1, 28),), "known escapes", "crun"),
    "podman": Fix(((5, 8, 10), (6, 2)), "known escapes", "podman"),
}


class Build(Struct, frozen=True):
    """A program as it lies here. `told`: the version it tells of itself; `package`: name and version of the distribution's
    package that the file belongs to, None when it belongs to none.
    """

    path: str
    told: str
    package: tuple[str, str] | None = None
    manager: str = "dpkg"


class Host(Struct, frozen=True, kw_only=True):
    """What is there. `programs`: by name, None when there is no such program."""

    kernel: str
    reboot_waits: bool
    programs: Mapping[str, Build | Unknown | None]
    python: str
    sqlite: str
    openssl: str
    has_tls_1_3: bool


def judge(host: Host) -> list[Check]:
    """A line for each program and library."""
    lines = [_kernel(host)]
    lines += [_program(name, host.programs) for name in ("podman", "runc", "crun", "conmon")]
    lines.append(_least("python", host.python, LEAST_PYTHON, "apt-get install python3"))
    lines.append(_least("sqlite", host.sqlite, LEAST_SQLITE, "apt-get install --only-upgrade libsqlite3-0"))
    if host.has_tls_1_3:
        lines.append(GROUP.ok("openssl", f"{host.openssl}, with TLS 1.3"))
    else:
        mend = "apt-get install --only-upgrade openssl libssl3"
        lines.append(GROUP.fail("openssl", f"{host.openssl} has no TLS 1.3: nobody can be called", mend))
    return lines


# ------------------------------------------------------------------ reading a version


def numbers_of(version: str) -> Numbers:
    """The numbers that a version begins with: "1:4.3.1+ds1-8" gives (4, 3, 1). Empty when it begins with none."""
    match = re.match(r"(?:\d+:)?v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def is_before_release(version: str) -> bool:
    """Whether it is a candidate of the release that it is named after: 1.4.0-rc.1, 6.0.0-dev, 1.4.0~rc1."""
    return re.search(r"\d[-~.+]?(rc|alpha|beta|dev)[.\d]*", version) is not None


def is_distributions(version: str) -> bool:
    """Whether the version carries a distribution's mark: "1.1.5+ds1-1+deb12u1", "4.3.1-1.el9", "1.1.12-0ubuntu3"."""
    rest = version[_length_of_numbers(version) :]
    return re.search(r"\+ds|\+deb|~deb|ubuntu|\.(el|fc)\d|\.amzn|\.suse|-\d+(\D|$)", rest) is not None


def _length_of_numbers(version: str) -> int:
    match = re.match(r"(?:\d+:)?v?\d+(?:\.\d+)*", version)
    return match.end() if match else 0


def is_fixed(version: str, fix: Fix) -> bool:
    """Whether upstream's release of this number holds the fix."""
    found = numbers_of(version)
    if is_before_release(version):
        return found > _padded(fix.first_fixed[-1], len(found))
    if found >= fix.first_fixed[-1]:
        return True
    return any(found[: len(one) - 1] == one[:-1] and found >= one for one in fix.first_fixed if len(one) > 2)


def _padded(numbers: Numbers, length: int) -> Numbers:
    return numbers + (0,) * (length - len(numbers))


# ------------------------------------------------------------------ the lines


def _kernel(host: Host) -> Check:
    if numbers_of(host.kernel)[:2] < LEAST_KERNEL:
        seen = f"{host.kernel}: rootless containers need {_dotted(LEAST_KERNEL)} or newer"
        return GROUP.fail(
            "kernel", seen, "apt-get install --only-upgrade linux-image-amd64 && systemctl reboot"
        )
    if host.reboot_waits:
        return GROUP.warn("kernel", f"{host.kernel}; a newer one waits for a reboot", "systemctl reboot")
    if re.search(r"-\d+-|\.(el|fc)\d|-(amd64|arm64|generic|cloud)", host.kernel):
        image = f"linux-image-{'generic' if 'generic' in host.kernel else host.kernel.rsplit('-', 1)[-1]}"
        seen = f"{host.kernel}: your distribution's; it knows which holes it closed"
        return GROUP.note("kernel", seen, f"apt-get install --only-upgrade {image}")
    return GROUP.note(
        "kernel", f"{host.kernel}: not a distribution's; whoever built it knows which holes it closed"
    )


def _program(name: str, programs: Mapping[str, Build | Unknown | None]) -> Check:
    build = programs.get(name)
    if isinstance(build, Unknown):
        return GROUP.unknown(name, build)
    if build is None:
        return _absent(name, programs)
    fix = FIXES.get(name)
    if not numbers_of(build.told):
        return GROUP.note(name, f"cannot tell: {build.path} tells no version: {build.told[:60]!r}")
    told = _with_package(build)
    if fix is None:
        return GROUP.ok(name, f"{told}; no escape through it is known here")
    if is_fixed(build.told, fix):
        return GROUP.ok(name, f"{told}, with upstream's fix of {fix.what}")
    wanted = " / ".join(_dotted(one) for one in fix.first_fixed)
    if build.package is not None or is_distributions(build.told):
        package = fix.package if build.package is None else build.package[0]
        seen = f"{told} is not upstream's fix ({wanted}) of {fix.what}: ask your distribution whether it carries it"
        return GROUP.note(name, seen, _upgrade(package, build))
    seen = f"{told} in {build.path} is open to {fix.what}; fixed in {wanted}"
    return GROUP.fail(name, seen, f"install -m 0755 {name} {build.path}  # upstream's {wanted}, or newer")


def _with_package(build: Build) -> str:
    """The version as its package counts it; a package of another thing (containerd's brings runc) counts otherwise."""
    if build.package is None:
        return build.told
    package, version = build.package
    return (
        version if numbers_of(version) == numbers_of(build.told) else f"{build.told} of {package} {version}"
    )


def _absent(name: str, programs: Mapping[str, Build | Unknown | None]) -> Check:
    other = {"runc": "crun", "crun": "runc"}.get(name)
    if other is not None and programs.get(other) is not None:
        return GROUP.note(name, f"not installed; {other} is")
    return GROUP.fail(name, "not installed", f"apt-get install {name}")


def _upgrade(package: str, build: Build) -> str:
    return f"dnf upgrade {package}" if build.manager == "rpm" else f"apt-get install --only-upgrade {package}"


def _least(name: str, version: str, least: Sequence[int], mend: str) -> Check:
    if numbers_of(version) < tuple(least):
        return GROUP.fail(name, f"{version}: {_dotted(least)} or newer is needed", mend)
    return GROUP.ok(name, version)


def _dotted(numbers: Sequence[int]) -> str:
    return ".".join(str(number) for number in numbers)
