"""Versions against known escapes: upstream's numbers are judged, a distribution's are told."""

import pytest
from msgspec.structs import replace

from agent.doctor.lines import Check, State, Unknown
from agent.doctor.look_versions import look_at_versions
from agent.doctor.versions import FIXES, Build, Host, is_distributions, judge, numbers_of

HOST = Host(
    kernel="6.18.44",
    reboot_waits=False,
    programs={
        "podman": Build("/usr/bin/podman", "6.2.0"),
        "runc": Build("/usr/sbin/runc", "1.4.0"),
        "crun": Build("/usr/bin/crun", "1.28"),
        "conmon": Build("/usr/bin/conmon", "2.1.13"),
    },
    python="3.11.2",
    sqlite="3.40.1",
    openssl="OpenSSL 3.0.19",
    has_tls_1_3=True,
)


def line(host: Host, name: str) -> Check:
    (found,) = [check for check in judge(host) if check.name == name]
    return found


def with_program(name: str, build: Build | Unknown | None) -> Host:
    return replace(HOST, programs={**HOST.programs, name: build})


def test_a_host_with_upstreams_newest_has_nothing_to_mend() -> None:
    assert {check.state for check in judge(HOST)} == {State.OK, State.NOTE}
    assert [check.name for check in judge(HOST) if check.state is State.NOTE] == ["kernel"]


@pytest.mark.parametrize(
    ("name", "version", "state"),
    [
        ("runc", "1.1.15", State.FAIL),
        ("runc", "1.2.7", State.FAIL),
        ("runc", "1.2.8", State.OK),
        ("runc", "1.2.10", State.OK),
        ("runc", "1.3.2", State.FAIL),
        ("runc", "1.3.3", State.OK),
        ("runc", "1.4.0-rc.2", State.FAIL),
        ("runc", "1.4.0", State.OK),
        ("runc", "1.5.0-rc.1", State.OK),
        ("runc", "v1.4.1", State.OK),
        ("runc", "2.0.0", State.OK),
        ("crun", "1.27", State.FAIL),
        ("crun", "1.28", State.OK),
        ("crun", "1.28.1", State.OK),
        ("podman", "4.9.3", State.FAIL),
        ("podman", "5.8.9", State.FAIL),
        ("podman", "5.8.10", State.OK),
        ("podman", "6.1.2", State.FAIL),
        ("podman", "6.2.0", State.OK),
        ("podman", "6.2.0-dev", State.FAIL),
        ("podman", "7.0.0", State.OK),
        ("conmon", "2.0.1", State.OK),
    ],
)
def test_upstreams_versions_pass_or_fail(name: str, version: str, state: State) -> None:
    found = line(with_program(name, Build(f"/usr/local/bin/{name}", version)), name)

    assert found.state is state
    assert version in found.seen


@pytest.mark.parametrize(
    ("name", "told", "package", "manager", "mend"),
    [
        ("runc", "1.1.5+ds1", ("runc", "1.1.5+ds1-1+deb12u1"), "dpkg", "apt-get install --only-upgrade runc"),
        ("runc", "1.1.5+ds1", None, "dpkg", "apt-get install --only-upgrade runc"),
        ("crun", "1.8.1", ("crun", "1.8.1-1+deb12u1"), "dpkg", "apt-get install --only-upgrade crun"),
        (
            "podman",
            "4.3.1",
            ("podman", "4.3.1+ds1-8+deb12u1+b3"),
            "dpkg",
            "apt-get install --only-upgrade podman",
        ),
        ("runc", "1.1.12-0ubuntu3.1", None, "dpkg", "apt-get install --only-upgrade runc"),
        ("runc", "1.2.5", ("runc", "4:1.2.5-2.el9_6"), "rpm", "dnf upgrade runc"),
        (
            "runc",
            "1.1.12",
            ("containerd.io", "1.6.28-1"),
            "dpkg",
            "apt-get install --only-upgrade containerd.io",
        ),
    ],
)
def test_a_distributions_older_build_is_neither_good_nor_bad(
    name: str, told: str, package: tuple[str, str] | None, manager: str, mend: str
) -> None:
    found = line(with_program(name, Build(f"/usr/bin/{name}", told, package, manager)), name)

    assert found.state is State.NOTE
    assert "not upstream's fix" in found.seen
    assert "ask your distribution" in found.seen
    assert found.mend == mend


def test_a_distributions_build_of_a_fixed_version_passes() -> None:
    build = Build("/usr/bin/runc", "1.3.3+ds1", ("runc", "1.3.3+ds1-2"))

    assert line(with_program("runc", build), "runc").state is State.OK


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.1.5+ds1-1+deb12u1", True),
        ("1.1.12-0ubuntu3", True),
        ("4.3.1-1.el9", True),
        ("1.8.1-1", True),
        ("1.1.5+ds1", True),
        ("1.2.8", False),
        ("1.4.0-rc.1", False),
        ("6.2.0-dev", False),
        ("v1.3.3", False),
    ],
)
def test_a_distributions_mark_is_seen(version: str, expected: bool) -> None:
    assert is_distributions(version) is expected


def test_the_numbers_of_a_version_have_no_epoch() -> None:
    assert numbers_of("1:4.13+dfsg1-1+deb12u2") == (4, 13)
    assert numbers_of("unknown") == ()


@pytest.mark.parametrize(
    ("present", "states"),
    [
        ({"runc"}, {"runc": State.OK, "crun": State.NOTE}),
        ({"crun"}, {"runc": State.NOTE, "crun": State.OK}),
        (set(), {"runc": State.FAIL, "crun": State.FAIL}),
    ],
)
def test_one_of_the_two_runtimes_is_enough(present: set[str], states: dict[str, State]) -> None:
    programs = {name: build if name in present else None for name, build in HOST.programs.items()}

    host = replace(HOST, programs=programs)

    assert {name: line(host, name).state for name in states} == states


def test_a_program_that_does_not_run_is_not_judged() -> None:
    found = line(with_program("runc", Unknown("runc ends with 1")), "runc")

    assert (found.state, found.seen) == (State.NOTE, "cannot tell: runc ends with 1")


def test_a_program_without_a_version_is_not_judged() -> None:
    assert line(with_program("crun", Build("/usr/bin/crun", "UNKNOWN")), "crun").state is State.NOTE


@pytest.mark.parametrize(
    ("kernel", "waits", "state", "mend"),
    [
        ("4.18.0", False, State.FAIL, "systemctl reboot"),
        ("5.10.0-30-amd64", False, State.FAIL, "systemctl reboot"),
        ("6.1.0-18-amd64", False, State.NOTE, "linux-image-amd64"),
        ("6.8.0-45-generic", False, State.NOTE, "linux-image-generic"),
        ("6.1.0-18-amd64", True, State.WARN, "systemctl reboot"),
        ("6.18.44", False, State.NOTE, None),
    ],
)
def test_the_kernel(kernel: str, waits: bool, state: State, mend: str | None) -> None:
    found = line(replace(HOST, kernel=kernel, reboot_waits=waits), "kernel")

    assert found.state is state
    assert found.mend is None if mend is None else mend in (found.mend or "")


@pytest.mark.parametrize(
    ("change", "name"),
    [({"python": "3.10.9"}, "python"), ({"sqlite": "3.34.1"}, "sqlite"), ({"has_tls_1_3": False}, "openssl")],
)
def test_what_this_program_stands_on_is_new_enough_or_fails(change: dict[str, object], name: str) -> None:
    assert line(replace(HOST, **change), name).state is State.FAIL


def test_every_fix_is_of_a_program_that_is_looked_at() -> None:
    seen = look_at_versions()

    assert set(FIXES) <= set(seen.programs)
    assert seen.has_tls_1_3
