"""The command: what it prints, writes and answers with its exit code. The agents are real processes' code on real files."""

import io
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.operator import listen_for_operator
from agent.api.problems import problem_app
from agent.api.serving import listen, server_tls, serving
from agent.api.views import OrderView
from agent.cli import run
from agent.cli.out import clean, print_json
from agent.cli.watch import Ending, ending_of
from agent.domain.chain import plan
from agent.domain.ids import digest_of, job_id
from agent.domain.jobs import JobEvent, JobState
from agent.domain.strict_json import encode
from agent.trust.certificates import CertificateAuthority
from agent.trust.fingerprints import fingerprint
from agent.trust.job_log import seal_log
from agent.trust.keys import SigningKey
from agent.trust.roster import Role, Roster, RosterEntry, sign_roster
from tests.api.house import House, open_house
from tests.builders import NOW, consortium, learnuplet, tamper

OK, FAILED, USAGE, UNREACHABLE, NOT_VERIFIED, NOT_YET = range(6)
GROUPS = ("keys", "peers", "policy", "data", "image")


@dataclass(frozen=True)
class Said:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Said]


@pytest.fixture
def command(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command for the agent whose home is `tmp_path/home`."""
    for name in [name for name in os.environ if name.startswith("DC_COMPUTE_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)

    def call(*arguments: object) -> Said:
        capfd.readouterr()
        code = run(["--home", str(tmp_path / "home"), *map(str, arguments)])
        told = capfd.readouterr()
        return Said(code, told.out, told.err)

    return call


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def no_traceback(said: Said) -> bool:
    """Whether an error was told in two lines: what, and what to do."""
    return bool(re.match(r"error \[[a-z-]+\]: .+\n  → .+\n$", said.err)) and "Traceback" not in said.err


# ------------------------------------------------------------------ the root


def test_help_tells_the_exit_codes(command: Command) -> None:
    said = command("--help")

    assert said.code == OK
    assert "4 verification failed" in " ".join(said.out.split())


def test_every_command_of_the_issue_is_there(command: Command) -> None:
    words = command("--help").out.split()

    for name in (
        "init",
        "serve",
        "work",
        "run",
        "submit",
        "orders",
        "watch",
        "log",
        "receipts",
        "held",
        "approve",
        "deny",
        "cancel",
        "status",
        "pause",
        "drain",
        "resume",
        "verify",
        "doctor",
        "selftest",
        *GROUPS,
    ):
        assert name in words


def test_every_command_that_prints_data_can_print_json(command: Command) -> None:
    printing = (
        "submit",
        "orders",
        "watch",
        "log",
        "receipts",
        "verify",
        "init",
        "keys show",
        "keys new",
        "peers list",
    )
    more = (
        "peers add",
        "peers remove",
        "peers show",
        "peers rotate",
        "peers trust",
        "peers sign",
        "keys rotate",
        "keys switch",
        "keys retire",
        "peers sync",
        "policy show",
        "policy check",
        "held",
        "approve",
        "deny",
        "cancel",
        "status",
        "pause",
        "drain",
        "resume",
        "data seal",
        "data inspect",
    )

    for name in (
        *printing,
        *more,
        "image add",
        "image list",
        "image prune",
        "image build",
        "doctor",
        "selftest",
    ):
        assert "--json" in command(*name.split(), "--help").out, name


def test_wrong_usage_is_2(command: Command) -> None:
    assert command("no-such-command").code == USAGE
    assert command("orders", "--no-such-option").code == USAGE


def test_wrong_settings_are_2_and_named(command: Command, home: Path) -> None:
    home.mkdir()
    (home / "agent.toml").write_text("[listen]\nprot = 1\n")

    said = command("orders")

    assert said.code == USAGE
    assert no_traceback(said)
    assert "did you mean 'port'?" in said.err


def test_an_agent_that_does_not_answer_is_3(command: Command) -> None:
    said = command("orders")

    assert said.code == UNREACHABLE
    assert no_traceback(said)


def test_the_version_is_told(command: Command) -> None:
    assert re.fullmatch(r"dc-compute \d+\.\d+\.\d+\S*\n", command("--version").out)


# ------------------------------------------------------------------ init


def test_init_makes_a_whole_agent(command: Command, home: Path) -> None:
    said = command("init", "--name", "a", "--url", "https://a.test:8443", "--certificate", "a.test", "--json")

    made = {Path(file["path"]).name: file["is_new"] for file in said.json["files"]}
    assert made == dict.fromkeys(
        ("agent.toml", "identity.pem", "tls.key", "tls.crt", "roster.toml", "policy.toml"), True
    )
    assert said.json["keyid"] == SigningKey.load(home / "data" / "identity.pem").keyid
    assert said.json["fingerprint"] == fingerprint(said.json["keyid"])


def test_init_keeps_keys_to_the_agent_alone(command: Command, home: Path) -> None:
    command("init", "--certificate", "a.test")

    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (home / "data").iterdir()
        if path.suffix in {".pem", ".key"}
    }
    assert modes == {"identity.pem": 0o600, "tls.key": 0o600}
    assert stat.S_IMODE((home / "data").stat().st_mode) == 0o700


def test_init_a_second_time_changes_nothing(command: Command, home: Path) -> None:
    command("init", "--certificate", "a.test")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}

    said = command("init", "--certificate", "b.test", "--port", "1", "--json")

    assert said.code == OK
    assert {file["is_new"] for file in said.json["files"]} == {False}
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_what_init_writes_is_read_back(command: Command) -> None:
    command("init", "--name", "a", "--url", "https://a.test:8443", "--port", "9999")

    (me,) = command("peers", "list", "--json").json
    assert (me["name"], me["role"], me["agent_url"], me["is_valid"]) == (
        "a",
        "agent",
        "https://a.test:8443",
        True,
    )
    assert command("policy", "check", "--json").json["admits_anything"] is False


def test_the_policy_that_init_writes_admits_nothing(command: Command, tmp_path: Path) -> None:
    command("init")
    o1 = consortium().orchestrator
    command("peers", "add", "o1", "--role", "orchestrator", "--public-key", o1.public.base64, "--yes")
    order = tmp_path / "order.json"
    order.write_bytes(consortium().order().envelope)

    said = command("policy", "check", order)

    assert said.code == FAILED
    assert "lacks" in said.out


def test_init_refuses_a_file_that_is_not_a_key(command: Command, home: Path) -> None:
    (home / "data").mkdir(parents=True)
    (home / "data" / "identity.pem").write_text("not a key")
    (home / "data" / "identity.pem").chmod(0o600)

    said = command("init")

    assert said.code == USAGE
    assert (home / "data" / "identity.pem").read_text() == "not a key"


def test_a_file_of_settings_with_every_line_in_force_means_the_same(command: Command, home: Path) -> None:
    command("init")
    text = (home / "agent.toml").read_text()
    in_force = re.sub(r"(?m)^# ([a-z_]+ = )", r"\1", text)
    (home / "agent.toml").write_text(in_force)

    said = command("peers", "list")

    assert in_force != text
    assert said.code == OK, said.err


# ------------------------------------------------------------------ keys


def test_a_new_key_is_private_and_never_overwritten(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "keys" / "owner.pem"
    said = command("keys", "new", path, "--json")
    again = command("keys", "new", path)

    assert said.json["keyid"] == SigningKey.load(path).keyid
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert again.code == USAGE
    assert no_traceback(again)


def test_a_key_may_be_named_by_its_file_alone(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert command("keys", "new", "owner.pem").code == OK
    assert command("keys", "show", "owner.pem").code == OK


def test_a_key_is_shown_by_its_public_half_only(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "owner.pem"
    command("keys", "new", path)

    said = command("keys", "show", path)

    assert SigningKey.load(path).public.base64 in said.out
    assert path.read_text().splitlines()[1] not in said.out


# ------------------------------------------------------------------ peers


def add(command: Command, name: str, role: str, *more: str) -> Said:
    key = SigningKey.generate()
    return command(
        "peers", "add", name, "--role", role, "--public-key", key.public.base64, "--yes", "--json", *more
    )


def test_peers_are_added_listed_and_removed_and_comments_stay(command: Command, home: Path) -> None:
    command("init", "--name", "me")
    comment = (home / "roster.toml").read_text().splitlines()[0]
    added = add(command, "b", "agent", "--agent-url", "https://b.test:8443")
    add(command, "o", "orchestrator")

    removed = command("peers", "remove", added.json["keyid"][:12])

    names = [entry["name"] for entry in command("peers", "list", "--json").json]
    assert removed.code == OK
    assert names == ["me", "o"]
    assert (home / "roster.toml").read_text().splitlines()[0] == comment


def test_a_peer_is_added_only_after_a_yes(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    command("init")
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))

    said = command(
        "peers", "add", "b", "--role", "agent", "--public-key", SigningKey.generate().public.base64
    )

    assert said.code == FAILED
    assert len(command("peers", "list", "--json").json) == 1


@pytest.mark.parametrize("key", ["", "AAAA", "not base64", "A" * 44])
def test_what_is_no_key_is_not_added(command: Command, key: str) -> None:
    command("init")

    said = command("peers", "add", "b", "--role", "agent", "--public-key", key, "--yes")

    assert said.code == USAGE


def test_a_key_is_added_once(command: Command) -> None:
    command("init")
    key = SigningKey.generate().public.base64
    first = command("peers", "add", "b", "--role", "agent", "--public-key", key, "--yes")

    again = command("peers", "add", "c", "--role", "storage", "--public-key", key, "--yes")

    assert (first.code, again.code) == (OK, FAILED)
    assert "roster-conflict" in again.err


def test_a_roster_of_the_consortium_is_taken_over_and_never_goes_back(
    command: Command, tmp_path: Path
) -> None:
    command("init", "--name", "me")
    root = SigningKey.generate()
    now = datetime.now(UTC)
    entry = RosterEntry.of(root.public, Role.OWNER, "x", valid_from=now, valid_until=now + timedelta(days=1))
    for version in (1, 2):
        (tmp_path / f"{version}.json").write_bytes(sign_roster(Roster((entry,)), version, root))
    sync = ("peers", "sync", "--root", root.public.base64, "--yes", "--json")

    newer = command(*sync, tmp_path / "2.json")
    older = command(*sync, tmp_path / "1.json")
    forged = command("peers", "sync", "--root", SigningKey.generate().public.base64, tmp_path / "2.json")

    assert newer.json["version"] == 2
    assert (older.code, forged.code) == (FAILED, FAILED)
    assert "stale-roster" in older.err
    assert [entry["name"] for entry in command("peers", "list", "--json").json] == ["me", "x"]


@pytest.fixture
def orchestrator_with_roster(tmp_path: Path) -> Iterator[tuple[str, str, Path]]:
    """An orchestrator that serves a signed roster: (its URL, the root's public key, its TLS authority)."""
    root, now = SigningKey.generate(), datetime.now(UTC)
    entry = RosterEntry.of(
        root.public, Role.OWNER, "from afar", valid_from=now, valid_until=now + timedelta(days=1)
    )
    bundle = sign_roster(Roster((entry,)), 7, root)
    authority = CertificateAuthority("test", now=now)
    identity = authority.server(["127.0.0.1"], now=now)
    (tmp_path / "o.crt").write_bytes(identity.certificate)
    (tmp_path / "o.key").write_bytes(identity.private_key)
    (tmp_path / "ca.crt").write_bytes(authority.certificate)

    async def roster(request: Request) -> Response:
        return (
            Response(bundle, media_type="application/json")
            if "signature" in request.headers
            else Response(status_code=401)
        )

    tls = server_tls(tmp_path / "o.crt", tmp_path / "o.key")
    with serving(problem_app([Route("/v1/roster", roster)]), listen("127.0.0.1", 0), tls=tls) as url:
        yield url, root.public.base64, tmp_path / "ca.crt"


def test_a_roster_is_fetched_from_an_orchestrator_by_a_signed_request(
    command: Command, orchestrator_with_roster: tuple[str, str, Path]
) -> None:
    url, root, authority = orchestrator_with_roster
    command("init", "--name", "me")
    add(command, "o1", "orchestrator", "--orchestrator-url", url, "--tls-ca", str(authority))

    said = command("peers", "sync", "o1", "--root", root, "--yes", "--json")

    assert said.code == OK, said.err
    assert said.json["version"] == 7
    assert [entry["name"] for entry in command("peers", "list", "--json").json] == ["me", "from afar"]


def test_an_orchestrator_that_does_not_answer_is_3(command: Command) -> None:
    command("init")
    add(command, "o1", "orchestrator", "--orchestrator-url", "https://127.0.0.1:1")

    said = command("peers", "sync", "o1", "--root", SigningKey.generate().public.base64)

    assert (said.code, no_traceback(said)) == (UNREACHABLE, True)


# ------------------------------------------------------------------ data


@pytest.fixture
def sealing(tmp_path: Path) -> Callable[[str], Sequence[object]]:
    """The arguments of `data seal` for a small file."""
    SigningKey.generate().save(tmp_path / "owner.pem")
    (tmp_path / "plain").write_bytes(b"secret" * 1000)
    world = consortium()
    keys = [world.orchestrator.keyid, world.other_orchestrator.keyid]

    def arguments(name: str) -> Sequence[object]:
        return (
            "data", "seal", tmp_path / "plain", "--out", tmp_path / name, "--shares", tmp_path / "shares",
            "--dataset", "0f3b8a52-0000-4000-8000-000000000001", "--key", tmp_path / "owner.pem",
            "--orchestrator", keys[0], "--orchestrator", keys[1], "--node", world.agent("a").keyid,
            "--use", "train", "--use", "test", "--json",
        )  # fmt: skip

    return arguments


def test_a_file_is_sealed_with_one_private_share_per_orchestrator(
    command: Command, tmp_path: Path, sealing: Callable[[str], Sequence[object]]
) -> None:
    said = command(*sealing("sealed"))

    shares = [Path(path) for path in said.json["shares"].values()]
    assert said.code == OK, said.err
    assert len(shares) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in shares} == {0o600}
    assert said.json["digest"] == digest_of((tmp_path / "sealed").read_bytes())
    assert b"secret" not in (tmp_path / "sealed").read_bytes()
    assert json.loads(shares[0].read_bytes()).keys() == {"dataset", "version", "orchestrator", "share"}


def test_sealing_overwrites_neither_file_nor_shares(
    command: Command, tmp_path: Path, sealing: Callable[[str], Sequence[object]]
) -> None:
    command(*sealing("sealed"))
    before = (tmp_path / "sealed").read_bytes()

    same, other = command(*sealing("sealed")), command(*sealing("other"))

    assert (same.code, other.code) == (USAGE, USAGE)
    assert (tmp_path / "sealed").read_bytes() == before
    assert not (tmp_path / "other").exists()


def test_a_sealed_file_s_header_is_shown(
    command: Command, tmp_path: Path, sealing: Callable[[str], Sequence[object]]
) -> None:
    command(*sealing("sealed"))

    shown = command("data", "inspect", tmp_path / "sealed", "--json")
    refused = command("data", "inspect", tmp_path / "plain")

    assert shown.json["header"]["uses"] == ["train", "test"]
    assert shown.json["header"]["size"] == 6000
    assert shown.json["owner"] == SigningKey.load(tmp_path / "owner.pem").keyid
    assert (refused.code, no_traceback(refused)) == (FAILED, True)


# ------------------------------------------------------------------ image


def test_a_file_that_is_no_image_is_refused(command: Command, tmp_path: Path) -> None:
    command("init")
    (tmp_path / "image.tar").write_bytes(b"nothing")

    said = command("image", "add", tmp_path / "image.tar", "--no-upload")

    assert (said.code, no_traceback(said)) == (FAILED, True)
    assert "bad-image" in said.err


def test_nothing_is_built_while_the_policy_does_not_say_so(command: Command, tmp_path: Path) -> None:
    command("init")
    (tmp_path / "context.tar.gz").write_bytes(b"never read")

    said = command("image", "build", tmp_path / "context.tar.gz", "--out", tmp_path / "image.tar")

    assert (said.code, no_traceback(said)) == (FAILED, True)
    assert "`allow_build` of policy.toml is not true" in said.err
    assert not (tmp_path / "image.tar").exists()


def test_an_image_of_copied_files_is_built_without_any_engine(
    command: Command, home: Path, tmp_path: Path
) -> None:
    command("init")
    (home / "policy.toml").write_text("allow_build = true\n")
    with tarfile.open(tmp_path / "context.tar.gz", "w:gz") as context:
        for name, content in (("Dockerfile", b'FROM scratch\nCOPY a /a\nENTRYPOINT ["/a"]\n'), ("a", b"1")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            context.addfile(member, io.BytesIO(content))

    said = command("image", "build", tmp_path / "context.tar.gz", "--out", tmp_path / "image.tar", "--json")

    assert said.code == OK, said.err
    assert said.json["digest"] == digest_of((tmp_path / "image.tar").read_bytes())
    assert said.json["entrypoint"] == ["/a"]
    again = command("image", "add", tmp_path / "image.tar", "--no-upload", "--json")
    assert again.json["digest"] == said.json["digest"]


def test_what_a_killed_build_leaves_on_the_disk_is_gone_with_the_next(
    command: Command, home: Path, tmp_path: Path
) -> None:
    command("init")
    (home / "policy.toml").write_text("allow_build = true\n")
    slow = tmp_path / "context.tar.gz"
    os.mkfifo(slow)
    told = (sys.executable, "-m", "agent", "--home", home, "image", "build", slow, "--out", tmp_path / "out")
    with subprocess.Popen(told, stderr=subprocess.DEVNULL) as building, slow.open("wb"):
        building.kill()  # it reads its context by now, else this had not been opened
    spool = home / "data" / "spool"
    assert [path for path in spool.glob("builds/*") if path.is_dir()] != []
    slow.unlink()
    slow.write_bytes(b"no context")

    command("image", "build", slow, "--out", tmp_path / "out")

    assert [path for path in spool.rglob("*") if path.name not in {"builds", "lock"}] == []


def test_json_steers_no_terminal_either_and_is_the_same_value(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"label": "a\x9b31m \x1b[2J \u202eb\x7f \U000e0001 \u2028 é 😀"}

    print_json(value)

    told = capsys.readouterr().out
    assert told.removesuffix("\n").isprintable()
    assert json.loads(told) == value


# ------------------------------------------------------------------ verify


@pytest.fixture
def chain(tmp_path: Path) -> Callable[..., Sequence[object]]:
    """Writes a whole chain; gives the arguments that verify it."""
    world = consortium()
    order = world.order()
    files = [order.envelope, *(r.envelope for r in world.chain(order, len(plan(order.order))))]
    (tmp_path / "roster.toml").write_text(world.roster.to_toml())

    def arguments(*more: object, changed: int | None = None) -> Sequence[object]:
        for number, data in enumerate(files):
            told = tamper(data, expires="2027-01-01T00:00:00Z") if number == changed == 0 else data
            if number == changed and number > 0:
                told = tamper(data, predicateType="x")
            (tmp_path / f"{number}.json").write_bytes(told)
        paths = [tmp_path / f"{number}.json" for number in range(len(files))]
        return ("verify", *paths, "--roster", tmp_path / "roster.toml", *more)

    return arguments


def test_a_sound_chain_is_verified_and_told(command: Command, chain: Callable[..., Sequence[object]]) -> None:
    said = command(*chain("--complete"))

    assert said.code == OK, said.err
    assert "verified: 5 receipts hold and link" in said.out
    assert "agent-b" in said.out
    assert "podman 4.3.1" in said.out


def test_a_sound_chain_is_told_as_json(command: Command, chain: Callable[..., Sequence[object]]) -> None:
    said = command(*chain("--json"))

    assert said.json["is_verified"] is True
    assert said.json["is_complete"] is True
    assert [link["task"]["kind"] for link in said.json["links"]] == ["learn"] * 4 + ["test"]


@pytest.mark.parametrize("broken", range(6))
def test_an_altered_file_is_named_and_the_exit_code_is_4(
    command: Command, chain: Callable[..., Sequence[object]], broken: int
) -> None:
    said = command(*chain(changed=broken))

    assert said.code == NOT_VERIFIED
    assert f"{broken}.json" in said.err
    assert "bad-signature" in said.err


def test_a_missing_receipt_breaks_the_chain(command: Command, chain: Callable[..., Sequence[object]]) -> None:
    arguments = list(chain())
    del arguments[3]  # receipt 1

    said = command(*arguments)

    assert said.code == NOT_VERIFIED
    assert "receipt 1" in said.err


def test_a_short_chain_is_sound_and_not_complete(
    command: Command, chain: Callable[..., Sequence[object]]
) -> None:
    arguments = list(chain())
    del arguments[5:7]

    short, complete = command(*arguments), command(*arguments, "--complete")

    assert (short.code, complete.code) == (OK, NOT_VERIFIED)
    assert "2 tasks are still to be told of" in short.out


def test_another_model_is_named(
    command: Command, chain: Callable[..., Sequence[object]], tmp_path: Path
) -> None:
    (tmp_path / "model").write_bytes(b"another model")

    said = command(*chain("--model", tmp_path / "model"))

    assert said.code == NOT_VERIFIED
    assert "digest-mismatch" in said.err


# ------------------------------------------------------------------ asking an agent


@pytest.fixture
def house(tmp_path: Path, home: Path) -> Iterator[House]:
    """An agent on in-memory ports behind the real operator's socket of `home`."""
    made = open_house(tmp_path)
    home.mkdir()
    (home / "agent.toml").write_text("[listen]\noperator_socket = 'op/operator.sock'\n")
    with ExitStack() as doors:
        listener = listen_for_operator(home / "op" / "operator.sock")
        doors.enter_context(serving(made.operator.app, listener, tls=None))
        yield made


@pytest.fixture
def order_file(tmp_path: Path) -> Path:
    path = tmp_path / "order.json"
    path.write_bytes(consortium().order().envelope)
    return path


ORDER = learnuplet().id


def test_the_operator_s_socket_is_the_agent_s_alone(house: House, home: Path) -> None:
    path = home / "op" / "operator.sock"

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_an_order_is_submitted_to_the_own_agent(command: Command, house: House, order_file: Path) -> None:
    said = command("submit", order_file, "--json")

    assert said.code == OK, said.err
    assert (said.json["order"], said.json["state"]) == (ORDER, "received")


def test_a_plain_order_is_signed_on_the_way(command: Command, house: House, tmp_path: Path) -> None:
    (tmp_path / "plain.json").write_bytes(encode(learnuplet()))
    house.world.orchestrator.save(tmp_path / "o1.pem")

    unsigned = command("submit", tmp_path / "plain.json")
    signed = command("submit", tmp_path / "plain.json", "--sign-with", tmp_path / "o1.pem")

    assert (unsigned.code, signed.code) == (USAGE, OK)
    assert house.ledger.order(ORDER).signer == house.world.orchestrator.keyid


def test_a_refused_order_tells_the_agent_s_own_words(command: Command, house: House, tmp_path: Path) -> None:
    (tmp_path / "forged.json").write_bytes(tamper(house.world.order().envelope, rank=9))

    said = command("submit", tmp_path / "forged.json")

    assert said.code == FAILED
    assert no_traceback(said)
    assert "error [bad-signature]" in said.err


@pytest.mark.parametrize("text", ["", "[]", "{", '{"payloadType": "x"}', '{"train_data": []}'])
def test_a_file_that_is_no_order_is_refused(
    command: Command, house: House, tmp_path: Path, text: str
) -> None:
    (tmp_path / "file").write_text(text)
    SigningKey.generate().save(tmp_path / "key.pem")

    said = command("submit", tmp_path / "file", "--sign-with", tmp_path / "key.pem")

    assert said.code == FAILED
    assert no_traceback(said)


def test_orders_are_listed_and_one_is_shown_with_its_chain(
    command: Command, house: House, order_file: Path
) -> None:
    command("submit", order_file)

    listed, shown = command("orders"), command("orders", ORDER)

    assert ORDER in listed.out
    assert "received" in listed.out
    assert shown.out.count("learn ") >= 4
    assert command("orders", "--state", "failed", "--json").json["jobs"] == []


def test_where_the_time_of_each_task_went_is_told_phase_by_phase(
    command: Command, house: House, order_file: Path
) -> None:
    command("submit", order_file)
    receipt = house.world.chain(house.world.order(), 1)[0]
    house.ledger.move(house.ledger.job(job_id(ORDER, 0)), JobEvent.FAIL, NOW, receipt=receipt)

    shown, told = command("orders", ORDER, "--timings"), command("orders", ORDER, "--timings", "--json").json

    assert [word for word in ("fetch", "1500", "run", "58000") if word not in shown.out] == []
    first = told["tasks"][0]
    assert (told["order"], first["position"], first["kind"], first["attempt"]) == (ORDER, 0, "learn", 1)
    assert (first["took_s"], first["phases"]) == (60.0, {"fetch": 1.5, "run": 58.0})
    jobs = command("orders", "--timings", "--json").json["jobs"]
    assert [(one["order"], one["took_s"], one["phases"]) for one in jobs] == [
        (ORDER, 59.5, {"fetch": 1.5, "run": 58.0})
    ]


def test_an_order_that_did_not_run_has_no_timings(command: Command, house: House, order_file: Path) -> None:
    command("submit", order_file)

    assert command("orders", ORDER, "--timings", "--json").json["tasks"] == []
    assert command("orders", "--timings", "--json").json["jobs"] == []


def test_an_unknown_order_is_1(command: Command, house: House) -> None:
    for name in ("orders", "log", "receipts", "watch"):
        said = command(name, ORDER)

        assert said.code == FAILED
        assert "not-found" in said.err


def test_a_job_s_log_cannot_steer_the_terminal(command: Command, house: House, order_file: Path) -> None:
    command("submit", order_file)
    job = house.ledger.job(job_id(ORDER, 0))
    printed = b"line 1\n\x1b[2Jline 2\x07\n"
    house.ledger.keep_log(
        job, "train", seal_log(printed, house.host.key, job=job.id, attempt=job.attempt, run="train")
    )
    house.ledger.keep_log(job, "again", b"in clear")

    said = command("log", ORDER)

    assert "line 1\n" in said.out
    assert "\x1b" not in said.out
    assert "\\x1b[2Jline 2\\x07" in said.out
    assert "not shown: the output was not sealed" in said.out
    assert "in clear" not in said.out


def finish(house: House) -> None:
    """The order's first task fails, with a receipt."""
    order = house.world.order()
    job = house.ledger.move(house.ledger.job(job_id(ORDER, 0)), JobEvent.ENQUEUE, NOW)
    running = house.ledger.start(job, NOW, worker="w", lease_until=NOW)
    receipt = house.world.receipt(order, [])
    house.ledger.move(running, JobEvent.FAIL, NOW, reason="oom", receipt=receipt)


def test_receipts_are_saved_for_verify(
    command: Command, house: House, order_file: Path, tmp_path: Path
) -> None:
    command("submit", order_file)
    finish(house)

    said = command("receipts", ORDER, "--out", tmp_path / "chain")

    (tmp_path / "roster.toml").write_text(house.world.roster.to_toml())
    files = sorted((tmp_path / "chain").iterdir())
    assert said.code == OK, said.err
    assert [path.name for path in files] == ["order.json", "receipt-000.json"]
    assert command("verify", *files, "--roster", tmp_path / "roster.toml").code == OK
    assert command("receipts", ORDER).code == OK


def test_watching_a_failed_order_ends_with_1(command: Command, house: House, order_file: Path) -> None:
    command("submit", order_file)
    finish(house)

    said = command("watch", ORDER, "--json")

    assert said.code == FAILED
    assert said.json["jobs"][0]["reason"] == "oom"


def test_watching_gives_up_after_its_time(command: Command, house: House, order_file: Path) -> None:
    command("submit", order_file)

    said = command("watch", ORDER, "--timeout", "0.2", "--every", "0.1")

    assert said.code == FAILED
    assert "received" in said.out


def view_of(
    *states: JobState | None, jobs: Sequence[JobState] = (), last: JobState | None = None
) -> OrderView:
    """A view of an order whose first tasks and jobs are in these states."""
    house = open_house(Path("/tmp"))
    house.operator.post("/v1/learnuplets", house.world.order().envelope)
    view = msgspec.json.decode(house.operator.get(f"/v1/orders/{ORDER}").content, type=OrderView)
    told = [*states, *[None] * (len(view.chain) - len(states))]
    told[-1] = last
    chain = tuple(replace(task, state=state) for task, state in zip(view.chain, told, strict=True))
    return replace(view, chain=chain, jobs=tuple(replace(view.jobs[0], state=state) for state in jobs))


def test_an_order_s_end_is_what_this_host_can_tell() -> None:
    later = NOW + timedelta(days=9)
    S = JobState

    assert ending_of(view_of(S.RUNNING, jobs=[S.RUNNING]), NOW) is None
    assert ending_of(view_of(S.DONE, jobs=[S.DONE]), NOW) is Ending.ELSEWHERE
    assert ending_of(view_of(S.DONE, jobs=[S.DONE]), later) is Ending.LOST
    assert ending_of(view_of(S.DONE, jobs=[S.DONE, S.ATTESTED], last=S.ATTESTED), NOW) is None
    assert ending_of(view_of(S.DONE, jobs=[S.DONE], last=S.DONE), NOW) is Ending.DONE
    assert ending_of(view_of(S.DONE, S.FAILED, jobs=[S.DONE]), NOW) is Ending.LOST


def test_text_from_outside_is_made_harmless() -> None:
    assert clean("a\x1b[31m\u202eb\n") == "a\\x1b[31m\\u202eb\\n"
    assert clean("ä → 医院") == "ä → 医院"
