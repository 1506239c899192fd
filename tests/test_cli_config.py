"""`config show|check|reference`: told as people and programs read it, and what a start would refuse is refused here."""

import json
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.cli import run
from agent.config_reference import markdown, rows
from agent.trust.certificates import CertificateAuthority
from tests.test_cli import OK, USAGE

NOW = datetime.now(UTC)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An agent whose workspaces lie in memory."""
    with tempfile.TemporaryDirectory(prefix="dcc-work-", dir="/dev/shm") as memory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", memory)
        fields = ("--url", "https://localhost:8443", "--host", "127.0.0.1", "--certificate", "localhost")
        assert run(["--home", str(tmp_path / "home"), "init", *fields]) == OK
        yield tmp_path / "home"


def check(home: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, str]]:
    """The exit code, and what fails by the name of its line."""
    capsys.readouterr()
    code = run(["--home", str(home), "config", "check", "--json", *words])
    lines = json.loads(capsys.readouterr().out)["checks"]
    failed = [line for line in lines if line["state"] == "fail"]
    assert all(line["mend"] for line in failed)
    return code, {line["name"]: line["seen"] for line in failed}


def test_an_agent_as_it_was_made_would_start(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(home, capsys) == (OK, {})


def test_each_thing_that_keeps_a_service_from_starting_is_told(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "data/identity.pem").chmod(0o644)
    (home / "roster.toml").write_text("entries = 1\n")
    (home / "policy.toml").write_text("kinds = 1\n")
    other = CertificateAuthority("other", now=NOW, days=9).server(["localhost"], now=NOW, days=9)
    (home / "data/tls.key").write_bytes(other.private_key)
    words = ("--set", "workspace.root=/proc/work", "--set", "listen.host=192.0.2.1")
    group = ("--set", "listen.operator_group=nobody-is-called-so")

    code, failed = check(home, capsys, *words, *group)

    assert code == USAGE
    assert "open to others" in failed["identity"]
    assert "the roster" in failed["roster"]
    assert "the policy" in failed["policy"]
    assert "key of another certificate" in failed["certificate key"]
    assert "not in memory" in failed["[workspace] root"]
    assert {"[listen] host", "[listen] operator_group", "identity key"} <= set(failed)


def test_a_certificate_that_is_over_is_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    then = NOW - timedelta(days=40)
    over = CertificateAuthority("x", now=then, days=39).server(["localhost"], now=then, days=30)
    (home / "data/tls.crt").write_bytes(over.certificate)
    (home / "data/tls.key").write_bytes(over.private_key)

    code, failed = check(home, capsys)

    assert code == USAGE
    assert "over since" in failed["certificate"]


def test_files_are_checked_before_they_are_put_in_place(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, good = tmp_path / "wrong.toml", tmp_path / "good.toml"
    wrong.write_text("[listen]\nprot = 1\n\n[lisen]\n")
    good.write_text("[limits]\nqueue_limit = 7\n")
    bad_roster, bad_policy = tmp_path / "r.toml", tmp_path / "p.toml"
    bad_roster.write_text("entries = 1\n")
    bad_policy.write_text("kinds = 1\n")

    capsys.readouterr()
    assert run(["--home", str(home), "config", "check", str(wrong)]) == USAGE
    told = capsys.readouterr().out
    assert f"{wrong}, line 2: [listen] has no key 'prot'; did you mean 'port'?" in told
    assert f"{wrong}, line 4: there is no section [lisen]; did you mean 'listen'?" in told
    assert check(home, capsys, str(good)) == (OK, {})
    assert check(home, capsys, "--roster", str(bad_roster))[1].keys() == {"roster"}
    assert check(home, capsys, "--policy", str(bad_policy))[1].keys() == {"policy"}
    assert check(home, capsys, str(tmp_path / "absent.toml"))[0] == USAGE
    assert check(home, capsys) == (OK, {})


def test_a_secret_that_somebody_pasted_is_not_repeated(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "COLUMNS", "500"
    )  # a path is not cut in two by the table, wherever the test's folder lies
    key = (home / "data/identity.pem").read_text()

    for words in ((), ("--json",)):
        capsys.readouterr()
        assert (
            run(["--home", str(home), "config", "show", "--set", f"runtime.cgroup_parent={key}", *words])
            == OK
        )
        told = capsys.readouterr().out
        assert key.splitlines()[1] not in told
        assert str(home / "data/identity.pem") in told


def test_the_reference_is_printed_in_three_ways(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for words in ((), ("--markdown",), ("--json",)):
        capsys.readouterr()
        assert run(["config", "reference", *words]) == OK
        told.append(capsys.readouterr().out)

    assert "[listen]" in told[0].splitlines()
    assert told[1] == markdown()
    assert len(json.loads(told[2])["settings"]) == len(list(rows()))
