"""`peers`, `keys rotate` and `ca` as a person uses them: what is asked, what is refused, and what the files are after."""

import io
import os
import ssl
import stat
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from freezegun import freeze_time
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.problems import problem_app
from agent.api.serving import listen, server_tls, serving
from agent.cli.doctor_patient import meet, owner_file
from agent.cli.doctor_sections import look_at_trust
from agent.cli.expiring import due_here, warn_of
from agent.cli.here import Here
from agent.cli.roster_file import block, edited
from agent.config import load_settings
from agent.doctor.lines import State
from agent.trust.certificates import CertificateAuthority, read_certificates
from agent.trust.fingerprints import fingerprint
from agent.trust.keys import SigningKey, next_of, previous_of
from agent.trust.roster import Role, Roster, RosterEntry, sign_roster
from agent.wiring_trust import instance_of, own_keys
from tests.test_cli import FAILED, OK, USAGE, Command, Said, command, home, no_traceback

__all__ = ["command", "home"]  # fixtures

ROOT = SigningKey.generate()


def add(command: Command, key: SigningKey, name: str, role: str, *more: str) -> Said:
    return command("peers", "add", name, "--role", role, "--public-key", key.public.base64, *more)


def names(command: Command) -> list[str]:
    return [entry["name"] for entry in command("peers", "list", "--json").json]


# ------------------------------------------------------------------ fingerprints


def test_who_types_what_was_read_to_them_is_not_asked(command: Command) -> None:
    command("init", "--name", "me")
    key = SigningKey.generate()

    said = add(command, key, "b", "agent", "--fingerprint", fingerprint(key.keyid))

    assert said.code == OK, said.err
    assert names(command) == ["me", "b"]


def test_another_fingerprint_adds_nobody(command: Command) -> None:
    command("init", "--name", "me")
    told = fingerprint(SigningKey.generate().keyid)

    said = add(command, SigningKey.generate(), "b", "agent", "--fingerprint", told, "--yes")

    assert (said.code, no_traceback(said)) == (FAILED, True)
    assert "wrong-fingerprint" in said.err
    assert names(command) == ["me"]


def test_who_is_asked_sees_the_fingerprint(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    command("init")
    key = SigningKey.generate()
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))

    said = add(command, key, "b", "agent")

    assert " ".join(said.out.split()[2:12]) == fingerprint(key.keyid)


@pytest.mark.parametrize("role", list(Role))
def test_every_role_is_added_shown_and_removed(command: Command, role: Role) -> None:
    command("init")
    key = SigningKey.generate()
    urls = {
        Role.AGENT: ("--agent-url", "https://x.test:1"),
        Role.ORCHESTRATOR: ("--orchestrator-url", "https://x.test:1"),
        Role.STORAGE: ("--storage-url", "https://x.test:1"),
        Role.OWNER: (),
    }
    add(command, key, "x", role, "--yes", *urls[role])

    shown = command("peers", "show", "x", "--json").json
    told = command("peers", "show", key.keyid[:8]).out
    removed = command("peers", "remove", "x")

    assert (shown["role"], shown["fingerprint"]) == (role, fingerprint(key.keyid))
    assert fingerprint(key.keyid)[:29] in told
    assert removed.code == OK
    assert "x" not in names(command)


def test_a_name_that_is_taken_is_a_conflict(command: Command, home: Path) -> None:
    command("init")
    add(command, SigningKey.generate(), "o1", "orchestrator", "--yes")
    before = (home / "roster.toml").read_bytes()

    said = add(command, SigningKey.generate(), "o1", "orchestrator", "--yes")

    assert (said.code, "roster-conflict" in said.err) == (FAILED, True)
    assert (home / "roster.toml").read_bytes() == before


# ------------------------------------------------------------------ the file


def entry_of(key: SigningKey, name: str, days: int = 30) -> RosterEntry:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    return RosterEntry.of(
        key.public, Role.OWNER, name, valid_from=now, valid_until=now + timedelta(days=days)
    )


def test_comments_and_what_stays_are_left_as_they_stand() -> None:
    a, b, c = (entry_of(SigningKey.generate(), name) for name in "abc")
    block_a, block_b = (Roster((one,)).to_toml().rstrip("\n") for one in (a, b))
    text = f"# who is who\n\n{block_a}  # a comment of a's\n# more of it\n\n{block_b}\n"

    made = edited(text, Roster((a, replace(b, name="B"), c)))

    assert made.startswith(f"# who is who\n\n{block_a}  # a comment of a's\n# more of it\n\n[[entries]]")
    assert [entry.name for entry in Roster.from_toml(made).entries] == ["a", "B", "c"]
    assert edited(made, Roster((a,))).startswith(f"# who is who\n\n{block_a}  # a comment of a's\n")


def test_a_file_that_does_not_end_in_a_line_grows_all_the_same() -> None:
    a, b = (entry_of(SigningKey.generate(), name) for name in "ab")

    made = edited(Roster((a,)).to_toml().rstrip("\n"), Roster((a, b)))

    assert Roster.from_toml(made) == Roster((a, b))
    assert Roster.from_toml(edited("", Roster((b,)))) == Roster((b,))


# ------------------------------------------------------------------ a signed roster


def signed_file(tmp_path: Path, version: int, *entries: RosterEntry, expires: datetime | None = None) -> Path:
    path = tmp_path / f"{version}-{len(list(tmp_path.iterdir()))}.json"
    path.write_bytes(sign_roster(Roster(entries), version, ROOT, expires))
    return path


def soon(key: SigningKey, name: str, role: Role = Role.OWNER, **urls: str) -> RosterEntry:
    now = datetime.now(UTC)
    return RosterEntry.of(
        key.public, role, name, valid_from=now, valid_until=now + timedelta(days=90), **urls
    )


def test_nothing_is_synced_before_a_root_key_is_pinned(command: Command, tmp_path: Path) -> None:
    command("init")

    said = command("peers", "sync", signed_file(tmp_path, 1))

    assert (said.code, no_traceback(said)) == (USAGE, True)
    assert "peers trust" in said.err


def test_a_pinned_root_key_gives_way_by_a_person_s_word_only(command: Command, tmp_path: Path) -> None:
    command("init")
    other = SigningKey.generate().public.base64
    command("peers", "trust", ROOT.public.base64, "--yes")
    command("peers", "sync", signed_file(tmp_path, 7, soon(SigningKey.generate(), "x")), "--yes")

    beside = command("peers", "sync", signed_file(tmp_path, 8), "--root", other)
    instead = command("peers", "trust", other, "--yes")

    assert (beside.code, instead.code) == (FAILED, FAILED)
    assert command("peers", "trust", "--json").json["keyid"] == ROOT.keyid
    assert command("peers", "trust", other, "--yes", "--replace").code == OK
    assert command("peers", "trust", "--json").json["public_key"] == other


def test_another_root_key_counts_its_own_versions_and_one_that_stays_never_forgets_its_own(
    command: Command, home: Path, tmp_path: Path
) -> None:
    command("init")
    other = SigningKey.generate()
    command("peers", "trust", ROOT.public.base64, "--yes")
    command("peers", "sync", signed_file(tmp_path, 7), "--yes")
    pinned = home / "roster.toml.root"
    pinned.chmod(0o640)
    pinned.write_text(other.public.base64)  # as far as an exchange came that was interrupted

    stuck = command("peers", "trust", other.public.base64, "--yes")
    (tmp_path / "1.json").write_bytes(sign_roster(Roster(), 1, other))
    taken = command("peers", "sync", tmp_path / "1.json", "--yes")
    (tmp_path / "2.json").write_bytes(sign_roster(Roster(), 2, other))
    newer = command("peers", "sync", tmp_path / "2.json", "--yes")
    again = command("peers", "trust", other.public.base64, "--yes")
    back = command("peers", "sync", tmp_path / "1.json", "--yes")

    assert [said.code for said in (stuck, taken, newer, again)] == [OK] * 4, taken.err
    assert (back.code, "stale-roster" in back.err) == (FAILED, True)


def test_what_changes_is_shown_and_asked(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("init", "--name", "me")
    command("peers", "trust", ROOT.public.base64, "--fingerprint", fingerprint(ROOT.keyid))
    add(command, SigningKey.generate(), "gone", "owner", "--yes")
    file = signed_file(tmp_path, 1, soon(SigningKey.generate(), "x"))

    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    refused = command("peers", "sync", file)
    before = names(command)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    taken = command("peers", "sync", file)

    assert (refused.code, before) == (FAILED, ["me", "gone"])
    assert all(word in refused.out for word in ("added", "removed", "kept"))
    assert (taken.code, names(command)) == (OK, ["me", "x"])


class Meanwhile(io.StringIO):
    """A person who says yes, once something else was done."""

    def __init__(self, do: Callable[[], object]) -> None:
        super().__init__("y\n")
        self._do = do

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        self._do()
        return super().readline(size)


def test_what_changed_while_a_person_was_asked_is_not_lost(
    command: Command, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("init", "--name", "me")
    command("peers", "trust", ROOT.public.base64, "--yes")
    file = signed_file(tmp_path, 1, soon(SigningKey.generate(), "x"))
    text = (home / "roster.toml").read_text()
    barred = text + block(soon(SigningKey.generate(), "barred"))

    monkeypatch.setattr(sys, "stdin", Meanwhile(lambda: (home / "roster.toml").write_text(barred)))
    refused = command("peers", "sync", file)

    assert (refused.code, "changed meanwhile" in refused.err) == (FAILED, True)
    assert names(command) == ["me", "barred"]
    assert command("peers", "sync", file, "--yes").code == OK


def test_no_sync_goes_back_on_a_newer_one_that_came_while_a_person_was_asked(
    command: Command, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("init", "--name", "me")
    command("peers", "trust", ROOT.public.base64, "--yes")
    x = soon(SigningKey.generate(), "x")
    older, newer = signed_file(tmp_path, 5, x), signed_file(tmp_path, 6, x, soon(SigningKey.generate(), "y"))
    bundle = home / "roster.toml.bundle.json"

    monkeypatch.setattr(sys, "stdin", Meanwhile(lambda: bundle.write_bytes(newer.read_bytes())))
    refused = command("peers", "sync", older)

    assert (refused.code, "stale-roster" in refused.err) == (FAILED, True)
    assert bundle.read_bytes() == newer.read_bytes()


def test_another_roster_under_the_same_version_is_refused_and_the_same_one_is_welcome(
    command: Command, tmp_path: Path
) -> None:
    command("init")
    command("peers", "trust", ROOT.public.base64, "--yes")
    first = signed_file(tmp_path, 3, soon(SigningKey.generate(), "x"))
    command("peers", "sync", first, "--yes")

    again = command("peers", "sync", first, "--yes")
    other = command("peers", "sync", signed_file(tmp_path, 3), "--yes")

    assert again.code == OK
    assert (other.code, "stale-roster" in other.err) == (FAILED, True)


def test_a_signed_roster_that_ran_out_is_not_taken_over(command: Command, tmp_path: Path) -> None:
    command("init")
    command("peers", "trust", ROOT.public.base64, "--yes")
    file = signed_file(tmp_path, 1, expires=datetime.now(UTC) - timedelta(seconds=1))

    said = command("peers", "sync", file, "--yes")

    assert (said.code, "ran out" in said.err) == (FAILED, True)


def test_a_key_is_swapped_by_a_person_s_word_only(command: Command, tmp_path: Path) -> None:
    command("init")
    command("peers", "trust", ROOT.public.base64, "--yes")
    known, thief = SigningKey.generate(), SigningKey.generate()
    url = {"orchestrator_url": "https://o.test:1"}
    add(command, known, "o1", "orchestrator", "--orchestrator-url", "https://o.test:1", "--yes")
    file = signed_file(tmp_path, 1, soon(thief, "o1", Role.ORCHESTRATOR, **url))

    refused = command("peers", "sync", file, "--yes")
    still = command("peers", "show", "o1", "--json").json["keyid"]
    taken = command("peers", "sync", file, "--yes", "--accept-key", "o1")

    assert (refused.code, "roster-conflict" in refused.err, still) == (FAILED, True, known.keyid)
    assert taken.code == OK
    assert command("peers", "show", "o1", "--json").json["keyid"] == thief.keyid


@pytest.fixture
def published(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server with a signed roster: (its URL, its TLS authority). It asks for no signature."""
    bundle = sign_roster(Roster((soon(SigningKey.generate(), "from the web"),)), 4, ROOT)
    ca = CertificateAuthority("web", now=datetime.now(UTC))
    server = ca.server(["127.0.0.1"], now=datetime.now(UTC))
    for name, data in (
        ("w.crt", server.certificate),
        ("w.key", server.private_key),
        ("web.crt", ca.certificate),
    ):
        (tmp_path / name).write_bytes(data)

    async def roster(request: Request) -> Response:
        assert "signature" not in request.headers
        return Response(bundle, media_type="application/json")

    tls = server_tls(tmp_path / "w.crt", tmp_path / "w.key")
    with serving(problem_app([Route("/roster", roster)]), listen("127.0.0.1", 0), tls=tls) as url:
        yield f"{url}/roster", tmp_path / "web.crt"


def test_a_roster_is_fetched_by_https_under_a_certificate_that_holds(
    command: Command, published: tuple[str, Path]
) -> None:
    url, authority = published
    command("init", "--name", "me")
    command("peers", "trust", ROOT.public.base64, "--yes")

    strange = command("peers", "sync", url, "--yes")
    plain = command("peers", "sync", url.replace("https", "http"), "--yes")
    said = command("peers", "sync", url, "--tls-ca", authority, "--yes", "--json")

    assert (strange.code, "CERTIFICATE_VERIFY_FAILED" in strange.err) == (3, True)
    assert plain.code == USAGE
    assert said.json["version"] == 4
    assert names(command) == ["me", "from the web"]


def test_a_coordinator_signs_what_agents_take_over(command: Command, home: Path, tmp_path: Path) -> None:
    command("init", "--name", "me")
    root = command("keys", "new", tmp_path / "root.pem", "--json").json
    sign = ("peers", "sign", home / "roster.toml", "--key", tmp_path / "root.pem", "--version", "1")
    command(*sign, "--to", tmp_path / "signed.json")
    command("peers", "trust", root["public_key"], "--yes")

    said = command("peers", "sync", tmp_path / "signed.json", "--json")

    assert said.json["version"] == 1
    assert said.json["changes"] == []
    assert command(*sign, "--to", tmp_path / "signed.json").code == USAGE


# ------------------------------------------------------------------ a new key


def settings_key(home: Path) -> Path:
    return load_settings(home, {}).identity.key


def test_a_rotation_from_its_begin_to_its_end(command: Command, home: Path) -> None:
    command("init", "--name", "me", "--url", "https://me.test:1")
    path = settings_key(home)
    old = SigningKey.load(path).keyid

    begun = command("keys", "rotate", "--days", "40", "--json").json
    again = command("keys", "rotate", "--json").json
    still = SigningKey.load(path).keyid
    switched = command("keys", "switch", "--json")
    now_in_use, kept = SigningKey.load(path).keyid, SigningKey.load(previous_of(path)).keyid
    too_soon = command("keys", "rotate")
    standing = command("keys", "rotate", "--check", "--json").json
    retired = command("keys", "retire", "--json")

    assert (begun["old"], still, kept) == (old, old, old)
    assert again == begun
    assert (switched.code, now_in_use) == (OK, begun["new"])
    assert too_soon.code == USAGE
    assert (standing["step"], standing["others"], standing["datasets"]) == ("switched", [], [])
    assert retired.code == OK, retired.err
    assert not previous_of(path).exists()
    assert [e["is_valid"] for e in command("peers", "list", "--json").json] == [False, True]


def test_the_new_key_is_private_and_the_statement_is_not_secret(command: Command, home: Path) -> None:
    command("init", "--name", "me")

    told = command("keys", "rotate", "--json").json

    key = next_of(settings_key(home))
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert SigningKey.load(key).keyid == told["new"]
    assert key.read_text().splitlines()[1] not in Path(told["statement"]).read_text()


def test_a_peer_takes_the_new_key_by_the_statement(command: Command, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    command("init", "--name", "me")
    me = command("keys", "show", "--json").json
    command("--home", other, "init", "--name", "other")
    command(
        "--home", other, "peers", "add", "me", "--role", "agent", "--public-key", me["public_key"], "--yes"
    )
    told = command("keys", "rotate", "--json").json

    taken = command(
        "--home", other, "peers", "rotate", told["statement"], "--fingerprint", fingerprint(told["new"])
    )
    unasked = command("--home", other, "peers", "rotate", told["statement"])

    assert (taken.code, unasked.code) == (OK, OK), taken.err
    shown = command("--home", other, "peers", "show", told["new"], "--json").json
    assert (shown["name"], shown["other_keys"]) == ("me", [told["old"]])


def test_an_altered_statement_is_refused_by_its_code(command: Command, tmp_path: Path) -> None:
    command("init", "--name", "me")
    told = command("keys", "rotate", "--json").json
    text = Path(told["statement"]).read_text()
    (tmp_path / "altered.json").write_text(text.replace(told["new"], told["old"]))

    said = command("peers", "rotate", tmp_path / "altered.json", "--yes")

    assert (said.code, no_traceback(said), "bad-rotation" in said.err) == (FAILED, True, True)


def test_nobody_switches_while_somebody_does_not_take_the_new_key(command: Command, home: Path) -> None:
    command("init", "--name", "me")
    add(
        command,
        SigningKey.generate(),
        "o1",
        "orchestrator",
        "--orchestrator-url",
        "https://127.0.0.1:1",
        "--yes",
    )
    command("keys", "rotate")
    before = SigningKey.load(settings_key(home)).keyid

    refused = command("keys", "switch")
    unchanged = SigningKey.load(settings_key(home)).keyid
    forced = command("keys", "switch", "--force")

    assert (refused.code, "orchestrator o1" in refused.err, unchanged) == (USAGE, True, before)
    assert forced.code == OK
    assert SigningKey.load(settings_key(home)).keyid != before


@pytest.mark.parametrize("words", [("switch",), ("retire",), ("rotate", "--check")])
def test_a_step_without_the_one_before_is_refused(command: Command, words: tuple[str, ...]) -> None:
    command("init", "--name", "me")

    said = command("keys", *words)

    assert (said.code, no_traceback(said)) == (USAGE, True)


def test_a_switch_that_was_interrupted_goes_on(command: Command, home: Path) -> None:
    command("init", "--name", "me")
    told = command("keys", "rotate", "--json").json
    path = settings_key(home)
    os.link(path, previous_of(path))  # as far as it came

    said = command("keys", "switch")

    assert said.code == OK, said.err
    assert SigningKey.load(path).keyid == told["new"]
    assert SigningKey.load(previous_of(path)).keyid == told["old"]


def test_the_key_in_use_is_not_retired_after_a_switch_that_was_interrupted(
    command: Command, home: Path
) -> None:
    command("init", "--name", "me", "--url", "https://me.test:1")
    told = command("keys", "rotate", "--json").json
    path = settings_key(home)
    os.link(path, previous_of(path))

    again, refused = command("keys", "rotate", "--json"), command("keys", "retire", "--force")

    assert again.json == told
    assert (refused.code, "keys switch" in refused.err) == (USAGE, True)
    assert [e["is_valid"] for e in command("peers", "list", "--json").json] == [True, True]
    assert command("keys", "switch").code == OK


def test_containers_keep_the_name_of_the_oldest_key(command: Command, home: Path) -> None:
    command("init", "--name", "me")
    told = command("keys", "rotate", "--json").json
    settings = load_settings(home, {})

    assert own_keys(settings, told["new"]) == (told["old"], told["new"])
    assert instance_of(settings, told["new"]) == instance_of(settings, told["old"]) == told["old"][:16]


# ------------------------------------------------------------------ certificates


def test_a_host_s_certificate_comes_by_a_request_and_its_key_never_leaves(
    command: Command, home: Path, tmp_path: Path
) -> None:
    command("init", "--name", "me", "--url", "https://a.example.org:8443", "--certificate", "a.example.org")
    key_before = (home / "data" / "tls.key").read_bytes()
    command("ca", "init", tmp_path / "ca", "--permit", "example.org")
    command("ca", "request", "--host", "a.example.org", "--to", tmp_path / "a.csr")

    issued = command(
        "ca", "issue", tmp_path / "ca", tmp_path / "a.csr", "--to", tmp_path / "a.crt", "--yes", "--json"
    )
    unchanged = (home / "data" / "tls.key").read_bytes()
    installed = command("ca", "install", tmp_path / "a.crt")

    assert issued.json["names"] == ["a.example.org"]
    assert unchanged == key_before
    assert installed.code == OK, installed.err
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
        home / "data" / "tls.crt", home / "data" / "tls.key"
    )
    assert stat.S_IMODE((home / "data" / "tls.key").stat().st_mode) == 0o600
    assert b"PRIVATE" not in (tmp_path / "a.csr").read_bytes() + (tmp_path / "a.crt").read_bytes()
    shown = command("peers", "show", "me", "--json").json
    assert shown["tls_ca"] == (tmp_path / "ca" / "ca.crt").read_text()


def test_an_authority_s_key_is_private_and_never_overwritten(command: Command, tmp_path: Path) -> None:
    command("ca", "init", tmp_path / "ca")
    before = (tmp_path / "ca" / "ca.key").read_bytes()

    again = command("ca", "init", tmp_path / "ca")

    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "ca" / "ca.key").stat().st_mode) == 0o600
    assert again.code == USAGE
    assert (tmp_path / "ca" / "ca.key").read_bytes() == before


def test_names_are_signed_after_a_yes_only(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("init")
    command("ca", "init", tmp_path / "ca")
    command("ca", "request", "--host", "a.example.org", "--to", tmp_path / "a.csr")
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))

    said = command("ca", "issue", tmp_path / "ca", tmp_path / "a.csr", "--to", tmp_path / "a.crt")

    assert (said.code, "a.example.org" in said.out) == (FAILED, True)
    assert not (tmp_path / "a.crt").exists()
    assert command("ca", "list", tmp_path / "ca", "--json").json == []


def test_a_certificate_is_renewed_for_the_same_key_and_both_are_listed(
    command: Command, tmp_path: Path
) -> None:
    command("init")
    command("ca", "init", tmp_path / "ca")
    command("ca", "request", "--host", "a.example.org", "--to", tmp_path / "a.csr")
    command(
        "ca",
        "issue",
        tmp_path / "ca",
        tmp_path / "a.csr",
        "--to",
        tmp_path / "1.crt",
        "--yes",
        "--days",
        "20",
    )
    command("ca", "install", tmp_path / "1.crt")

    command("ca", "renew", tmp_path / "ca", "a.example.org", "--to", tmp_path / "2.crt")
    installed = command("ca", "install", tmp_path / "2.crt", "--json")

    first, second = (read_certificates((tmp_path / name).read_bytes())[0] for name in ("1.crt", "2.crt"))
    listed = command("ca", "list", tmp_path / "ca")
    assert installed.json["serial"] == second.serial != first.serial
    assert first.not_after < second.not_after
    assert "ends soon" in listed.out
    assert command("ca", "renew", tmp_path / "ca", "b.example.org", "--to", tmp_path / "3.crt").code == USAGE


def test_a_certificate_for_another_key_is_not_installed(command: Command, home: Path, tmp_path: Path) -> None:
    command("init", "--certificate", "a.example.org")
    command("ca", "init", tmp_path / "ca")
    command("ca", "request", "--host", "a.example.org", "--to", tmp_path / "1.csr")
    command("ca", "issue", tmp_path / "ca", tmp_path / "1.csr", "--to", tmp_path / "1.crt", "--yes")
    command("ca", "request", "--host", "a.example.org", "--to", tmp_path / "2.csr")
    before = (home / "data" / "tls.crt").read_bytes()

    said = command("ca", "install", tmp_path / "1.crt")

    assert (said.code, no_traceback(said)) == (USAGE, True)
    assert (home / "data" / "tls.crt").read_bytes() == before


def test_a_client_s_certificate_or_one_without_its_authority_is_not_installed(
    command: Command, tmp_path: Path
) -> None:
    command("init")
    command("ca", "init", tmp_path / "ca")
    command("ca", "request", "--host", "desk", "--to", tmp_path / "d.csr")
    issue = ("ca", "issue", tmp_path / "ca", tmp_path / "d.csr", "--yes", "--to")
    command(*issue, tmp_path / "client.crt", "--for", "client")
    command(*issue, tmp_path / "server.crt")
    text = (tmp_path / "server.crt").read_text()
    (tmp_path / "alone.crt").write_text(text[: text.index("-----END CERTIFICATE-----\n") + 26])

    for name in ("client.crt", "alone.crt"):
        assert command("ca", "install", tmp_path / name).code == USAGE, name


def test_an_authority_whose_end_is_near_signs_for_what_is_left(command: Command, tmp_path: Path) -> None:
    command("init")
    command("ca", "init", tmp_path / "ca", "--days", "398")
    command("ca", "request", "--host", "a.example.org", "--to", tmp_path / "a.csr")

    with freeze_time(datetime.now(UTC) + timedelta(days=390)):
        said = command(
            "ca", "issue", tmp_path / "ca", tmp_path / "a.csr", "--to", tmp_path / "a.crt", "--yes", "--json"
        )

    leaf, root = read_certificates((tmp_path / "a.crt").read_bytes())
    assert said.code == OK, said.err
    assert leaf.not_after <= root.not_after


# ------------------------------------------------------------------ what ends


@pytest.mark.parametrize(("days", "kinds"), [(300, []), (340, ["own key"]), (366, ["own key"])])
def test_the_end_of_the_own_key_is_known_thirty_days_before(
    command: Command, home: Path, days: int, kinds: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    command("init", "--name", "me", "--certificate", "me.test")
    now = datetime.now(UTC) + timedelta(days=days)

    told = due_here(Here(home), now)
    warn_of(told, now)

    assert [one.kind for one in told] == kinds
    assert capfd.readouterr().err.count("own key agent me") == len(kinds)


def test_the_doctor_tells_of_an_overlap_and_of_an_authority_that_end(
    command: Command, tmp_path: Path
) -> None:
    command("init", "--name", "me", "--certificate", "me.test")
    ca = CertificateAuthority("theirs", now=datetime.now(UTC), days=20)
    (tmp_path / "theirs.crt").write_bytes(ca.certificate)
    add(command, SigningKey.generate(), "b", "agent", "--tls-ca", str(tmp_path / "theirs.crt"), "--yes")
    command("keys", "rotate", "--days", "10")
    command("keys", "switch", "--force")
    here = Here(tmp_path / "home")
    patient = meet(here, owner_file(here.settings), by_root=False, is_quick=True)

    lines = {line.name: line for line in look_at_trust(patient)}

    overlap = next(line for name, line in lines.items() if name.startswith("key overlap agent me"))
    authority = lines["authority CN=theirs, of b"]
    assert (overlap.state, authority.state) == (State.WARN, State.WARN)
    assert str(overlap.mend).endswith("keys rotate --check")
    assert lines["own entry"].state is State.OK
