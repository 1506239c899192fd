"""install.sh, really run as root: without a network, twice, upgraded, gone back, and taken away. Minutes.

The first tests share one scratch root and go on from one another in the order in which they stand here. The last ones read what
a whole story left that was played under systemd.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.host.vm.scratch import BOOT_TIMEOUT_S, MAKE_TIMEOUT_S, Scratch, why_not

pytestmark = [pytest.mark.host, pytest.mark.timeout(2 * MAKE_TIMEOUT_S + BOOT_TIMEOUT_S)]

INSTALL = ("sh", "/src/install.sh", "--offline", "/wheels")


@pytest.fixture(scope="module")
def untouched() -> Iterator[Scratch]:
    lacking = why_not()
    if lacking:
        pytest.skip(f"a scratch root needs {lacking}")
    with Scratch.made() as made:
        yield made


@pytest.fixture(scope="module")
def before(untouched: Scratch) -> set[str]:
    """Its files before anything was installed."""
    return untouched.files()


@pytest.fixture(scope="module")
def scratch(untouched: Scratch, before: set[str]) -> Scratch:
    return untouched


# ------------------------------------------------------------------ a root of its own


def test_a_wheel_with_another_digest_is_refused_and_nothing_of_it_is_left(
    scratch: Scratch, before: set[str]
) -> None:
    altered = scratch.root / "variants/wheels"
    shutil.copytree(scratch.root / "wheels", altered)
    (wheel,) = altered.glob("starlette-*.whl")
    wheel.write_bytes(wheel.read_bytes() + b"\0")

    done = scratch.run("sh", "/src/install.sh", "--offline", "/variants/wheels")

    assert done.returncode != 0
    assert "hash mismatch" in done.stderr.lower(), done.stderr[-2000:]
    assert not [path for path in scratch.files() - before if "starlette" in path]
    assert list((scratch.root / "opt/dc-compute/versions").iterdir()) == []
    assert not (scratch.root / "usr/local/bin/dc-compute").is_symlink()


def test_a_wheelhouse_that_lacks_a_wheel_is_refused(scratch: Scratch) -> None:
    (wheel,) = (scratch.root / "variants/wheels").glob("h11-*.whl")
    wheel.unlink()

    done = scratch.run("sh", "/src/install.sh", "--offline", "/variants/wheels")

    assert done.returncode != 0
    assert "h11" in done.stderr


def test_without_any_network_everything_comes_from_the_folder_of_wheels(scratch: Scratch) -> None:
    devices = scratch.run("cat", "/proc/net/dev").stdout.splitlines()[2:]
    done = scratch.run(*INSTALL)

    assert [device.split(":")[0].strip() for device in devices] == ["lo"]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "is in force" in done.stdout
    assert "installed, not started (api)" in done.stdout
    said = scratch.run(
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "dc-compute", "--version"
    )
    assert said.stdout.startswith("dc-compute "), said.stderr


def test_nobody_but_root_can_change_the_program(scratch: Scratch) -> None:
    found = scratch.run("sh", "-c", "find /opt/dc-compute ! -type l '(' -perm /022 -o ! -user root ')'")

    assert (found.returncode, found.stdout) == (0, "")


def test_units_and_command_name_the_link_and_the_program_its_own_folder(scratch: Scratch) -> None:
    command = scratch.run("readlink", "/usr/local/bin/dc-compute").stdout.strip()
    prefix = scratch.run(
        "/opt/dc-compute/current/bin/python", "-I", "-c", "import sys; print(sys.prefix)"
    ).stdout
    script = (scratch.root / "opt/dc-compute/current/bin/dc-compute").read_text()

    assert command == "/opt/dc-compute/current/bin/dc-compute"
    for unit in ("api", "worker"):
        text = (scratch.root / f"etc/systemd/system/dc-compute-{unit}.service").read_text()
        assert re.search(r"^ExecStart=/opt/dc-compute/current/bin/dc-compute ", text, re.MULTILINE)
    assert prefix.strip() == "/opt/dc-compute/current"  # of who asks by the link
    assert re.match(
        r"#!/opt/dc-compute/versions/[^/]+/bin/python", script
    )  # of the command, and so of the services


def test_a_second_run_does_nothing_and_says_so(scratch: Scratch) -> None:
    there = scratch.files()

    done = scratch.run(*INSTALL)

    assert done.returncode == 0, done.stderr
    assert "nothing was to be done" in done.stdout
    assert "install.sh: wrote" not in done.stdout
    assert scratch.files() == there


SHELLS = {
    "bash": """
. /usr/share/bash-completion/bash_completion
_completion_loader dc-compute
COMP_WORDS=(dc-compute pee) COMP_CWORD=1
_dc_compute_completion dc-compute
echo "${COMPREPLY[@]}"
""",
    "fish": 'complete -C "dc-compute pee"',
    # A terminal of its own, where a person types and presses <Tab>.
    "zsh": r"""
zmodload zsh/zpty
zpty t zsh -f -i
zpty -w t 'PS1=; autoload -U compinit; compinit -u -d /tmp/dump; echo READ""Y'
zpty -r t seen '*READY*'
zpty -w -n t $'dc-compute pee\t'
zpty -r t seen '*dc-compute peers*' && echo peers
zpty -d t
""",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_the_command(scratch: Scratch, shell: str) -> None:
    done = scratch.run("timeout", "60", shell, "-c", SHELLS[shell])

    assert done.stdout.split()[:1] == ["peers"], done.stdout + done.stderr


def test_another_version_takes_its_place_and_the_former_one_is_kept(scratch: Scratch) -> None:
    former = (scratch.root / "opt/dc-compute/current").readlink()
    for number in ("0.9.1", "0.9.2"):
        variant(scratch, number)
        done = scratch.run("sh", f"/variants/{number}/install.sh", "--upgrade", "--offline", "/wheels")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    links = {
        name: str((scratch.root / "opt/dc-compute" / name).readlink()) for name in ("current", "previous")
    }
    assert links["current"].startswith("versions/0.9.2-")
    assert links["previous"].startswith("versions/0.9.1-")
    assert not (scratch.root / "opt/dc-compute" / former).exists()
    assert scratch.run("dc-compute", "--version").stdout == "dc-compute 0.9.2\n"


def test_an_install_elsewhere_beside_the_one_in_use_is_refused(scratch: Scratch) -> None:
    done = scratch.run(*INSTALL, "--prefix", "/srv/dc-compute")

    assert done.returncode == 1
    assert "is installed in /opt/dc-compute already" in done.stderr


def test_a_purge_leaves_every_file_as_it_was(scratch: Scratch, before: set[str]) -> None:
    done = scratch.run("sh", "/variants/0.9.2/install.sh", "--uninstall", "--purge")

    assert done.returncode == 0, done.stderr
    made_by_shells = {"./root/.config", "./root/.local", "./root/.config/fish", "./root/.local/share"}
    left = {path for path in scratch.files() - before if not path.startswith("./root/.local/share/fish")}
    assert left <= made_by_shells
    assert before <= scratch.files()
    assert "dc-compute" not in (scratch.root / "etc/subuid").read_text()


def test_an_upgrade_of_nothing_is_refused(scratch: Scratch) -> None:
    done = scratch.run(*INSTALL, "--upgrade")

    assert done.returncode == 1
    assert "nothing is installed" in done.stderr


# ------------------------------------------------------------------ under systemd


def variant(scratch: Scratch, number: str, *additions: tuple[str, str]) -> Path:
    """These sources under another version, at /variants/NUMBER, with text added at the end of files."""
    target = scratch.root / "variants" / number
    target.parent.mkdir(exist_ok=True)
    shutil.copytree(scratch.root / "src", target)
    init = target / "agent/__init__.py"
    init.write_text(re.sub(r'__version__ = "[^"]*"', f'__version__ = "{number}"', init.read_text()))
    for name, text in additions:
        file = target / name
        file.write_text(file.read_text() + text if file.exists() else text)
    return target


ENDS = ("agent/worker.py", '\nraise SystemExit("this worker does not start")\n')
REVISION = """from alembic import op

revision = "9999"
down_revision = "{head}"


def upgrade() -> None:
    op.execute("CREATE TABLE moved (x TEXT)")
"""

# Each step leaves what it said in /result/NAME, its exit code and how the host then stands.
STORY = """
export HOME=/root
step() {
    name=$1
    shift
    "$@" >"/result/$name" 2>&1
    echo "exit code $?" >>"/result/$name"
    {
        dc-compute --version
        readlink -f /opt/dc-compute/current
        systemctl is-active dc-compute-api.service dc-compute-worker.service
        setpriv --reuid dc-compute --regid dc-compute --init-groups python3 -c '
import sqlite3
ledger = sqlite3.connect("/var/lib/dc-compute/ledger.sqlite")
print("schema", *ledger.execute("SELECT version_num FROM alembic_version").fetchone())'
        systemctl show -p MainPID --value dc-compute-worker.service
    } >"/result/$name.then" 2>&1
}
files() { find / -xdev '(' -path /result -o -path /proc -o -path /run -o -path /tmp ')' -prune -o -print | sort; }
upgrade() { sh "/variants/$1/install.sh" --upgrade --offline /wheels; }

# What 0.1 left: the environment itself at /opt/dc-compute, no link, units that name it.
flatten() {
    cd /opt/dc-compute
    python3 -m venv --without-pip . && cp -a current/lib/. lib/ && cp -a current/share .
    rm -rf share/dc-compute/host current previous versions
    mkdir -p bin && cat >bin/dc-compute <<'END'
#!/opt/dc-compute/bin/python
import sys
from agent.cli import main
sys.exit(main())
END
    chmod 0755 bin/dc-compute
    ln -sfn /opt/dc-compute/bin/dc-compute /usr/local/bin/dc-compute
    sed -i 's|/opt/dc-compute/current/bin/|/opt/dc-compute/bin/|' /etc/systemd/system/dc-compute-*.service
    rm -f /usr/local/share/zsh/site-functions/_dc-compute /usr/share/fish/vendor_completions.d/dc-compute.fish
    rm -rf /usr/local/share/bash-completion
    systemctl daemon-reload
    systemctl restart dc-compute-api.service dc-compute-worker.service
    for i in $(seq 60); do dc-compute status && break; sleep 1; done
}

interrupt() {
    sh /variants/0.9.3/install.sh --upgrade --offline /wheels >/result/interrupted.said 2>&1 &
    until grep -q 'switching from' /result/interrupted.said; do sleep 0.1; done
    kill -TERM $!
    wait $!
}

files >/result/before.files
step install sh /src/install.sh --offline /wheels
step flat flatten
step moved upgrade 0.9.1
step ended upgrade 0.9.2
step interrupted interrupt
step schema upgrade 0.9.4
step good upgrade 0.9.5
step again upgrade 0.9.5
uid=$(id -u dc-compute)
step purge sh /variants/0.9.5/install.sh --uninstall --purge
files >/result/after.files
{
    ls -d /run/dc-compute /run/user/$uid /dev/shm/*lock_$uid /tmp/*-$uid 2>/dev/null
    pgrep -a -u $uid
    systemctl list-units --no-legend 'dc-compute*' "user@$uid.service"
    grep dc-compute /etc/passwd /etc/group /etc/shadow /etc/gshadow /etc/subuid /etc/subgid
} >/result/left
"""


@pytest.fixture(scope="module")
def story() -> Iterator[Mapping[str, str]]:
    lacking = why_not()
    if lacking:
        pytest.skip(f"a scratch root needs {lacking}")
    with Scratch.made() as made:
        head = re.search(
            r'^HEAD: Final = "(\d+)"', (made.root / "src/agent/ports/ledger_schema.py").read_text(), re.M
        )
        assert head
        variant(made, "0.9.1")
        variant(made, "0.9.2", ENDS)
        variant(made, "0.9.3")
        moved = variant(
            made,
            "0.9.4",
            ENDS,
            ("agent/ports/migrations/versions/r9999_moved.py", REVISION.format(head=head[1])),
        )
        schema = moved / "agent/ports/ledger_schema.py"
        schema.write_text(schema.read_text().replace(head[0], 'HEAD: Final = "9999"'))
        variant(made, "0.9.5")
        left = made.boot(STORY)
        assert "left" in left, left["console"][-4000:]
        yield left


def stands(story: Mapping[str, str], step: str, number: str) -> None:
    """After this step that version is in force, and both services run."""
    then = story[f"{step}.then"]
    assert f"dc-compute {number}\n" in then, story[step][-4000:] + then
    assert f"/versions/{number}-" in then
    assert then.count("\nactive") == 2, story[step][-4000:] + then


def test_the_former_layout_is_moved_by_one_upgrade(story: Mapping[str, str]) -> None:
    assert story["flat"].endswith("exit code 0\n"), story["flat"]
    assert "/versions/" not in story["flat.then"]

    assert story["moved"].endswith("exit code 0\n"), story["moved"][-4000:]
    stands(story, "moved", "0.9.1")


def test_a_version_whose_worker_ends_goes_back_and_says_why(story: Mapping[str, str]) -> None:
    said = story["ended"]

    assert said.endswith("exit code 1\n")
    assert "did not become ready: dc-compute-worker.service was started 3 times and ended each time" in said
    assert re.search(r"0\.9\.1-\w+ is in force again", said)
    assert "putting the ledger of before back" not in said
    stands(story, "ended", "0.9.1")


def test_an_upgrade_that_is_interrupted_goes_back(story: Mapping[str, str]) -> None:
    said = story["interrupted.said"]

    assert "did not become ready: it was interrupted" in said, said[-3000:]
    assert story["interrupted"].endswith("exit code 143\n")
    stands(story, "interrupted", "0.9.1")


def test_a_schema_that_moved_goes_back_with_the_ledger_of_before(story: Mapping[str, str]) -> None:
    said = story["schema"]

    assert said.endswith("exit code 1\n")
    assert "the new version changed the ledger's schema: putting the ledger of before back" in said
    assert "its mode is `restored`" in said
    assert "schema 9999" not in story["schema.then"]
    assert "schema 0" in story["schema.then"]
    stands(story, "schema", "0.9.1")


def test_a_version_that_is_ready_stays_and_what_is_older_than_the_former_one_goes(
    story: Mapping[str, str],
) -> None:
    said = story["good"]

    assert said.endswith("exit code 0\n"), said[-4000:]
    stands(story, "good", "0.9.5")
    assert {found.rpartition("/")[2][:5] for found in re.findall(r"removing (\S+/versions/\S+)", said)} == {
        *("0.9.2", "0.9.3", "0.9.4")
    }
    assert "removing the layout of before" in said


def test_the_same_version_once_more_restarts_nothing(story: Mapping[str, str]) -> None:
    assert "nothing was to be done" in story["again"]
    assert story["again.then"] == story["good.then"]  # the worker's process too


def test_a_purge_leaves_no_process_no_user_and_no_file(story: Mapping[str, str]) -> None:
    added = set(story["after.files"].splitlines()) - set(story["before.files"].splitlines())
    journal = {path for path in added if path.startswith("/var/log/")}

    assert story["purge"].endswith("exit code 0\n"), story["purge"]
    assert story["left"] == ""
    assert added - journal == set()
    assert set(story["before.files"].splitlines()) <= set(story["after.files"].splitlines())
