"""Settings: where they come from, what overrides what, and that a mistake is named with its file and key."""

import os
import re
from pathlib import Path

import pytest
from msgspec.structs import fields

from agent import config
from agent.config import SECTIONS, SYSTEM_HOME, Settings, find_home, load_settings, user_home
from agent.errors import BadSettings


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def load(home: Path, text: str = "", **environment: str) -> Settings:
    (home / "agent.toml").write_text(text)
    return load_settings(home, environment)


# ------------------------------------------------------------------ values


def test_without_a_file_every_setting_has_a_default(home: Path) -> None:
    settings = load_settings(home, {})

    assert settings.listen.port == 8443
    assert settings.trust.policy == home / "policy.toml"
    assert settings.paths.ledger == home / "data" / "ledger.sqlite"


def test_the_file_overrides_the_default(home: Path) -> None:
    settings = load(home, "[listen]\nport = 9000\nnames = ['a.test:9000']\n[limits]\nskew_s = 5\n")

    assert (settings.listen.port, settings.listen.names, settings.limits.skew_s) == (
        9000,
        ("a.test:9000",),
        5,
    )


def test_the_environment_overrides_the_file(home: Path) -> None:
    settings = load(
        home,
        "[listen]\nport = 9000\n[timeouts]\nread_s = 1.5\n",
        DC_COMPUTE_LISTEN_PORT="9001",
        DC_COMPUTE_LISTEN_NAMES="a.test, b.test:1",
        DC_COMPUTE_TIMEOUTS_READ_S="2.5",
        DC_COMPUTE_TRUST_ROSTER="/srv/roster.toml",
    )

    assert (settings.listen.port, settings.listen.names) == (9001, ("a.test", "b.test:1"))
    assert settings.timeouts.read_s == 2.5
    assert settings.trust.roster == Path("/srv/roster.toml")


def test_a_relative_path_starts_from_the_folder_of_the_settings(home: Path) -> None:
    settings = load(home, "[identity]\nkey = 'keys/me.pem'\n", DC_COMPUTE_PATHS_DATA="elsewhere")

    assert settings.identity.key == home / "keys" / "me.pem"
    assert settings.paths.data == home / "elsewhere"


def test_settings_are_frozen(home: Path) -> None:
    settings = load(home)

    with pytest.raises(AttributeError):
        settings.listen.port = 1  # type: ignore[misc]


def test_every_section_and_key_has_a_word_in_its_docstring_or_speaks_for_itself() -> None:
    for name, kind in SECTIONS.items():
        assert kind.__doc__, name
        assert fields(kind), name


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[listen]\nprot = 1", ["agent.toml", "[listen]", "'prot'", "did you mean 'port'?"]),
        ("[lisen]\nport = 1", ["agent.toml", "[lisen]", "did you mean 'listen'?"]),
        ("[zzzz]\nport = 1", ["agent.toml", "[zzzz]", "there are: identity, listen"]),
        ("[listen]\nport = '1'", ["agent.toml", "[listen] port", "int"]),
        ("[listen]\nport = 70000", ["agent.toml", "[listen] port", "65535"]),
        ("[listen]\nport = true", ["agent.toml", "[listen] port"]),
        ("[limits]\nqueue_limit = 0", ["agent.toml", "[limits] queue_limit"]),
        ("[identity]\nkey = ''", ["agent.toml", "[identity] key", "path"]),
        ("[identity]\nkey = 7", ["agent.toml", "[identity] key", "path"]),
        ("[log]\nlevel = 'loud'", ["agent.toml", "[log] level"]),
        ("listen = 8443", ["agent.toml", "listen is a section"]),
        ("[listen\n", ["agent.toml", "is not TOML"]),
        ("[listen]\nport = 1\nport = 2", ["agent.toml", "is not TOML"]),
    ],
)
def test_a_mistake_in_the_file_is_named(home: Path, text: str, words: list[str]) -> None:
    with pytest.raises(BadSettings) as refusal:
        load(home, text)

    assert all(word in refusal.value.detail for word in words), refusal.value.detail


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("DC_COMPUTE_LISTEN_PROT", "1", ["DC_COMPUTE_LISTEN_PROT", "did you mean 'port'?"]),
        ("DC_COMPUTE_LISTEN_PORT", "many", ["DC_COMPUTE_LISTEN_PORT", "int"]),
        ("DC_COMPUTE_LIMITS_SKEW_S", "301", ["DC_COMPUTE_LIMITS_SKEW_S", "300"]),
    ],
)
def test_a_mistake_in_the_environment_is_named(
    home: Path, variable: str, value: str, words: list[str]
) -> None:
    with pytest.raises(BadSettings) as refusal:
        load_settings(home, {variable: value})

    assert all(word in refusal.value.detail for word in words), refusal.value.detail


def test_a_variable_of_somebody_else_is_left_alone(home: Path) -> None:
    load_settings(home, {"DC_COMPUTE_SOAK_SECONDS": "5", "DC_COMPUTE_HOME": str(home), "PATH": ""})


def test_a_file_that_cannot_be_read_is_named(home: Path) -> None:
    (home / "agent.toml").mkdir()

    with pytest.raises(BadSettings, match=re.escape(str(home / "agent.toml"))):
        load_settings(home, {})


def test_a_file_that_is_not_text_is_named(home: Path) -> None:
    (home / "agent.toml").write_bytes(b"\xff\xfe")

    with pytest.raises(BadSettings, match="is not TOML"):
        load_settings(home, {})


# ------------------------------------------------------------------ where they lie


def test_the_flag_wins_over_the_environment(tmp_path: Path) -> None:
    assert find_home(tmp_path, {"DC_COMPUTE_HOME": "/srv"}) == tmp_path
    assert find_home(None, {"DC_COMPUTE_HOME": "/srv"}) == Path("/srv")


def test_the_system_s_folder_counts_when_it_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "SYSTEM_HOME", tmp_path)
    assert find_home(None, {}) == tmp_path

    monkeypatch.setattr(config, "SYSTEM_HOME", tmp_path / "missing")
    assert find_home(None, {}) == user_home()


def test_a_service_keeps_its_things_where_systemd_puts_them() -> None:
    settings = load_settings(SYSTEM_HOME, {})

    assert settings.paths.data == Path("/var/lib/dc-compute")
    assert settings.workspace.root == Path("/run/dc-compute/work")
    assert settings.listen.operator_socket == Path("/run/dc-compute/operator.sock")
    assert settings.runtime.podman_socket == Path("/run/dc-compute/podman/podman.sock")


def test_two_agents_of_one_user_share_no_folder(tmp_path: Path) -> None:
    session = {"XDG_RUNTIME_DIR": str(tmp_path)}

    one, other = (load_settings(tmp_path / name, session) for name in ("one", "other"))

    assert one.workspace.root != other.workspace.root
    assert one.listen.operator_socket.parent != other.listen.operator_socket.parent
    assert one.paths.data != other.paths.data
    assert one.runtime == other.runtime


def test_without_a_session_folder_nothing_lies_in_a_folder_that_others_may_write(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, {"XDG_RUNTIME_DIR": str(tmp_path / "missing")})

    assert settings.workspace.root.is_relative_to(tmp_path)
    assert os.fspath(settings.listen.operator_socket).startswith(str(tmp_path))


# ------------------------------------------------------------------ credentials


def test_a_credential_named_after_a_setting_stands_for_its_default(home: Path, tmp_path: Path) -> None:
    handed = tmp_path / "credentials"
    handed.mkdir()
    (handed / "identity.key").write_text("")
    (handed / "somebody.else").write_text("")

    settings = load(home, CREDENTIALS_DIRECTORY=str(handed))

    assert settings.identity.key == handed / "identity.key"
    assert settings.listen.tls_key == home / "data" / "tls.key"


def test_a_credential_does_not_replace_a_path_that_somebody_wrote(home: Path, tmp_path: Path) -> None:
    (tmp_path / "identity.key").write_text("")
    handed = str(tmp_path)

    from_file = load(home, "[identity]\nkey = '/told/in/file.pem'\n", CREDENTIALS_DIRECTORY=handed)
    from_environment = load(home, DC_COMPUTE_IDENTITY_KEY="/told/outside.pem", CREDENTIALS_DIRECTORY=handed)

    assert from_file.identity.key == Path("/told/in/file.pem")
    assert from_environment.identity.key == Path("/told/outside.pem")
