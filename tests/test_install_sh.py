"""install.sh, the units and the locks, as far as an unprivileged user can try them: words, plan, refusals.

Installing for real needs root and a host of its own; that is a test of `host`.
"""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "install.sh"
LOCKS = ["requirements.lock", "requirements-dev.lock", ".ci/build.lock"]

needs_no_root = pytest.mark.skipif(os.geteuid() == 0, reason="would act on this machine: run as root")


def install(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", SCRIPT, *arguments], capture_output=True, text=True, timeout=60, check=False)


def places_of_a_host_install() -> list[Path]:
    """The paths that --help names."""
    return [Path(place) for place in re.findall(r"^  (/[a-z./-]+)", install("--help").stdout, re.MULTILINE)]


def is_there(paths: list[Path]) -> list[bool]:
    return [path.exists() for path in paths]


# ------------------------------------------------------------------ words


def test_help_names_every_file_that_is_installed_elsewhere() -> None:
    named = re.findall(r"^  (/\S+)", install("--help").stdout, re.MULTILINE)
    plan = install("--dry-run", "--prefix", "/opt/dc-compute").stdout
    targets = re.findall(r"would run: install -m 0644 \S+ (\S+)$", plan, re.MULTILINE)
    sources = [file for file in (ROOT / "systemd").rglob("*") if file.is_file()]

    assert len(targets) >= len(sources)
    for target in targets:
        is_named = any(fnmatch(target, place) or target.startswith(f"{place}/") for place in named)
        assert is_named, f"{target} is installed and --help does not say so"


def test_an_unknown_flag_prints_the_usage_and_does_nothing() -> None:
    result = install("--prefx", "/opt/x")

    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("usage: install.sh")


@pytest.mark.parametrize("prefix", ["/", "opt/x", "/opt/../etc", "/opt/a b", "/opt/x;id", ""])
def test_a_prefix_that_is_no_plain_absolute_path_is_refused(prefix: str) -> None:
    result = install("--dry-run", "--prefix", prefix)

    assert result.returncode == 1
    assert "--prefix wants" in result.stderr


def test_purge_alone_is_refused() -> None:
    result = install("--purge", "--dry-run")

    assert result.returncode == 1
    assert "--purge goes with --uninstall" in result.stderr


@needs_no_root
@pytest.mark.parametrize("arguments", [[], ["--uninstall"], ["--uninstall", "--purge"]])
def test_a_host_install_without_root_is_refused(arguments: list[str]) -> None:
    result = install(*arguments)

    assert result.returncode == 1
    assert "needs root" in result.stderr


# ------------------------------------------------------------------ the plan


def test_a_dry_run_says_every_step_and_changes_nothing() -> None:
    places = places_of_a_host_install()
    before = is_there(places)

    result = install("--dry-run", "--prefix", "/opt/elsewhere")

    assert result.returncode == 0, result.stderr
    assert len(places) >= 5
    assert is_there(places) == before
    assert not Path("/opt/elsewhere").exists()
    for place in [
        "/opt/elsewhere",
        "/etc/dc-compute",
        "dc-compute-api.service",
        "/etc/tmpfiles.d/dc-compute.conf",
    ]:
        assert place in result.stdout


def test_a_prefix_is_where_the_command_leads() -> None:
    result = install("--dry-run", "--prefix", "/srv/dc")

    assert re.search(r"ln -sfn versions/\S+ /srv/dc/current$", result.stdout, re.MULTILINE)
    assert "ln -sfn /srv/dc/current/bin/dc-compute /usr/local/bin/dc-compute" in result.stdout


def test_a_dry_uninstall_keeps_the_data_and_says_so() -> None:
    result = install("--uninstall", "--dry-run")

    assert result.returncode == 0, result.stderr
    assert "rm -rf /etc/dc-compute" not in result.stdout
    assert "kept: /etc/dc-compute, /var/lib/dc-compute" in result.stdout


def test_a_dry_purge_names_what_goes() -> None:
    result = install("--uninstall", "--purge", "--dry-run")

    assert result.returncode == 0, result.stderr
    assert "rm -rf /etc/dc-compute /var/lib/dc-compute" in result.stdout


@pytest.mark.parametrize("arguments", [[], ["--upgrade"]])
def test_a_dry_run_backs_nothing_up_where_nothing_is_installed(arguments: list[str]) -> None:
    result = install("--dry-run", "--prefix", "/opt/elsewhere", *arguments)

    assert result.returncode == 0, result.stderr
    assert "dc-compute backup" not in result.stdout


@needs_no_root
def test_an_upgrade_without_root_is_refused() -> None:
    assert "needs root" in install("--upgrade").stderr


# ------------------------------------------------------------------ a folder of wheels


def test_a_folder_without_wheels_is_no_wheelhouse(tmp_path: Path) -> None:
    empty, missing = (
        install("--dry-run", "--offline", str(tmp_path)),
        install("--dry-run", "--offline", "/missing"),
    )

    assert (empty.returncode, missing.returncode) == (1, 1)
    assert f"{tmp_path} has none" in empty.stderr
    assert "there is no /missing" in missing.stderr


def test_offline_takes_packages_from_that_folder_only(tmp_path: Path) -> None:
    (tmp_path / "h11-0.16.0-py3-none-any.whl").touch()

    result = install("--dry-run", "--offline", str(tmp_path))

    assert result.returncode == 0, result.stderr
    assert f"--require-hashes --offline --no-index --find-links {tmp_path}" in result.stdout
    assert not re.search(r"would run: (apt-get|dnf|env DEBIAN)", result.stdout)


@pytest.mark.parametrize("action", ["--uninstall", "--deps"])
def test_offline_goes_with_a_host_install(action: str, tmp_path: Path) -> None:
    (tmp_path / "h11-0.16.0-py3-none-any.whl").touch()

    result = install("--dry-run", "--offline", str(tmp_path), action)

    assert result.returncode == 1
    assert "--offline goes with a host install" in result.stderr


# ------------------------------------------------------------------ other distributions

TOOLS = (
    *(
        "awk",
        "basename",
        "cat",
        "cut",
        "dirname",
        "env",
        "find",
        "getent",
        "grep",
        "head",
        "id",
        "ls",
        "printf",
    ),
    *("readlink", "sed", "setpriv", "sh", "sha256sum", "sort", "stat", "tr", "uname"),
)
RHEL_9 = 'NAME="Red Hat Enterprise Linux"\nID="rhel"\nID_LIKE="fedora"\nVERSION_ID="9.4"\nPLATFORM_ID="platform:el9"\n'
RHEL_10 = (
    'ID="rhel"\nVERSION_ID="10.0"\nPLATFORM_ID="platform:el10"\nPRETTY_NAME="Red Hat Enterprise Linux 10.0"\n'
)
FEDORA = 'ID=fedora\nVERSION_ID=42\nPLATFORM_ID="platform:f42"\n'
JAMMY = 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nID=ubuntu\nID_LIKE=debian\nVERSION_ID="22.04"\n'
# What `apt-cache` of Ubuntu 22.04 says: its python3 is 3.10, and universe has 3.11.
JAMMY_CACHE = """#!/bin/sh
case "$1 $2" in
    "policy python3") printf 'python3:\\n  Installed: (none)\\n  Candidate: 3.10.6-1~22.04\\n' ;;
    "show python3.11-venv") echo "Package: python3.11-venv" ;;
esac
"""


def plan_on(folder: Path, os_release: str, programs: Mapping[str, str], *arguments: str) -> str:
    """What a dry run says on a system with this os-release, no Python, and of programs only these and the plainest ones."""
    for part in ("agent", "systemd", "seccomp", "pyproject.toml", "requirements.lock", ".ci"):
        if not (folder / part).exists():
            (folder / part).symlink_to(ROOT / part)
    (folder / "os-release").write_text(os_release)
    (folder / "bin").mkdir()
    for tool in TOOLS:
        (folder / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    for name, text in programs.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    text = SCRIPT.read_text()
    for old, new in (
        ("PATH=$PATH:/usr/sbin:/sbin", f"PATH={folder}/bin"),
        ("readonly os_release=/etc/os-release", f"readonly os_release={folder}/os-release"),
        ("/usr/bin/python3 /usr/local/bin/python3 /usr/bin/python3.1?", "/missing/python3"),
        ("/etc/containers/policy.json", "/missing/policy.json"),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "install.sh").write_text(text)
    done = subprocess.run(
        ["/bin/sh", folder / "install.sh", "--dry-run", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


REFUSES = "#!/bin/sh\necho called >&2\nexit 9\n"


@pytest.mark.parametrize(
    ("os_release", "python"), [(RHEL_9, "python3.11"), (RHEL_10, "python3"), (FEDORA, "python3")]
)
def test_where_dnf_is_its_packages_have_their_names_there(
    tmp_path: Path, os_release: str, python: str
) -> None:
    plan = plan_on(tmp_path, os_release, {"dnf": REFUSES})

    (line,) = re.findall(r"dnf .*install --setopt=install_weak_deps=False (.*)$", plan, re.MULTILINE)
    assert line.split()[:5] == [python, "podman", "crun", "conmon", "shadow-utils"]
    assert not set(line.split()) & {"uidmap", "runc", "python3-venv", "passwd"}
    assert "apt-get" not in plan


def test_on_ubuntu_22_04_the_python_of_universe_is_taken(tmp_path: Path) -> None:
    plan = plan_on(tmp_path, JAMMY, {"apt-get": REFUSES, "apt-cache": JAMMY_CACHE})

    (line,) = re.findall(r"apt-get .*install .*--no-install-recommends (.*)$", plan, re.MULTILINE)
    assert line.split()[:4] == ["python3.11", "python3.11-venv", "podman", "runc"]


def test_without_a_known_package_manager_the_missing_ones_are_named(tmp_path: Path) -> None:
    plan = plan_on(tmp_path, 'PRETTY_NAME="Arch Linux"\n', {})

    assert "missing here (Debian's names): python3 python3-venv podman" in plan
    assert "Arch Linux has neither" in plan


# ------------------------------------------------------------------ whatever lies in systemd/


@pytest.mark.parametrize(("version", "is_old"), [("252 (252.39-1~deb12u1)", True), ("257 (257.8-1)", False)])
def test_each_kind_of_file_in_systemd_has_its_place(tmp_path: Path, version: str, is_old: bool) -> None:
    made = tmp_path / "systemd"
    for name in (
        "x.socket",
        "x.slice",
        "x.service.d/a.conf",
        "user/y.service",
        "user/y.service.d/b.conf",
        "notes.txt",
    ):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).touch()
    for name in (
        "systemd-before-255.conf",
        "jobs-slice.conf",
        "jobs-scope.conf",
        "dc-compute-podman.service",
    ):
        (made / name).touch()
    systemctl = f"#!/bin/sh\necho 'systemd {version}'\n"

    plan = plan_on(tmp_path, "ID=debian\n", {"apt-get": REFUSES, "systemctl": systemctl})

    targets = set(re.findall(r"install -m 0644 systemd/\S+ (\S+)$", plan, re.MULTILINE))
    old = {
        f"/etc/systemd/system/dc-compute-{service}.service.d/10-before-255.conf"
        for service in ("api", "worker")
    }
    assert targets == (old if is_old else set()) | {
        "/etc/systemd/system/x.socket",
        "/etc/systemd/system/x.slice",
        "/etc/systemd/system/x.service.d/a.conf",
        "/etc/systemd/user/dc-compute-podman.service",
        "/etc/systemd/user/y.service",
        "/etc/systemd/user/y.service.d/b.conf",
        "/var/lib/dc-compute/.config/systemd/user/user.slice.d/50-dc-compute.conf",
        "/var/lib/dc-compute/.config/systemd/user/scope.d/50-dc-compute.conf",
    }


# ------------------------------------------------------------------ subordinate ids


def ask(function: str, *arguments: str | Path) -> int:
    """What one function of install.sh prints."""
    text = re.search(rf"^{function}\(\) \{{.*?^\}}", SCRIPT.read_text(), re.DOTALL | re.MULTILINE)
    assert text
    command = ["sh", "-euc", f'{text[0]}\n{function} "$@"', "sh", *map(str, arguments)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_the_first_range_begins_at_100000(tmp_path: Path) -> None:
    assert ask("free_subid_start", tmp_path / "missing") == 100000


def test_a_new_range_lies_above_every_range_of_both_files(tmp_path: Path) -> None:
    subuid, subgid = tmp_path / "subuid", tmp_path / "subgid"
    subuid.write_text("ada:100000:65536\nbob:300000:65536\n# a comment\n\n")
    subgid.write_text("ada:100000:65536\ncas:2147483648:524288\n")

    assert ask("free_subid_start", subuid) == 365536
    assert ask("free_subid_start", subuid, subgid) == 2148007936


def test_the_ranges_of_one_user_are_added_up(tmp_path: Path) -> None:
    subuid = tmp_path / "subuid"
    subuid.write_text("ada:100000:65536\nada-2:300000:1\nada:400000:458752\n")

    assert ask("subid_total", "ada", subuid) == 524288
    assert ask("subid_total", "bob", subuid) == 0
    assert ask("subid_total", "ada", tmp_path / "missing") == 0


# ------------------------------------------------------------------ units


@pytest.mark.parametrize(("unit", "command"), [("api", "serve"), ("worker", "work")])
def test_a_unit_runs_its_command_unprivileged_behind_the_walls(unit: str, command: str) -> None:
    text = (ROOT / "systemd" / f"dc-compute-{unit}.service").read_text()
    lines = set(text.splitlines())

    assert f"ExecStart=/opt/dc-compute/bin/dc-compute {command}" in lines
    assert {
        "User=dc-compute",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        f"RestrictNamespaces={'user' if unit == 'worker' else 'yes'}",  # the worker's helper enters Podman's
        "SystemCallArchitectures=native",
        "UMask=0077",
        "LimitCORE=1",
    } <= lines


def test_the_api_cannot_see_podman() -> None:
    text = (ROOT / "systemd" / "dc-compute-api.service").read_text()

    assert re.search(r"^InaccessiblePaths=.*-/run/dc-compute/podman", text, re.MULTILINE)


def test_podman_starts_with_an_environment_of_its_own() -> None:
    text = (ROOT / "systemd" / "dc-compute-podman.service").read_text()

    assert re.search(r"^ExecStart=/usr/bin/env -i .* /usr/bin/podman ", text, re.MULTILINE)
    assert "NoNewPrivileges=" not in text
    assert (
        "\nDelegate=yes\n" in text
    )  # else Podman sees no cpu controller and every job is refused on cgroup v2


def test_podman_and_conmon_through_which_jobs_print_leave_no_core() -> None:
    lines = (ROOT / "systemd" / "dc-compute-podman.service").read_text().splitlines()

    assert "LimitCORE=1" in lines


# ------------------------------------------------------------------ locks


def locked(name: str) -> set[str]:
    """The `package==version` of a lock. Markers differ: what a host needs on one system, a desk may need on all."""
    return set(re.findall(r"^([a-z0-9][^ ]*==[^ \\\n;]*)", (ROOT / name).read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_pins_each_package_by_hash_and_names_no_host(name: str) -> None:
    text = (ROOT / name).read_text()
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]

    assert not re.search(r"://|index-url|find-links", text)
    assert entries
    assert all("--hash=sha256:" in entry for entry in entries)


@pytest.mark.parametrize("name", ["requirements.lock", ".ci/build.lock"])
def test_what_a_host_runs_is_what_the_tests_ran_on(name: str) -> None:
    tested = locked("requirements-dev.lock")

    # What the tests ran on everywhere, a host may run on some systems only.
    assert {line for line in locked(name) if line.partition(" ;")[0] not in tested} <= tested


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {re.split(r"[<>=]", requirement)[0] for requirement in project["project"]["dependencies"]}
    have = {line.split("==")[0] for line in locked("requirements.lock")}

    assert wanted <= have, "run `make lock`"


# ------------------------------------------------------------------ .ci/rootless


@needs_no_root
def test_rootless_just_runs_the_command_of_a_user_without_privileges() -> None:
    command = [str(ROOT / ".ci" / "rootless"), "sh", "-c", "pwd; exit 7"]

    result = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)

    assert result.returncode == 7
    assert result.stdout.strip() == str(ROOT)


def test_the_command_and_its_children_run_outside_the_privileges_of_root() -> None:
    status = Path("/proc/self/status").read_text()

    if os.geteuid() == 0:
        pytest.skip("run as root, not by `make test`")
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
