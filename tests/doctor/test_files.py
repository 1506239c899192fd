"""Modes and owners: nobody else reads a key, writes in a folder of the agent's, or changes what it believes."""

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.doctor.files import About, Files, Kind, Named, judge, parents_of
from agent.doctor.lines import Check, State, Unknown
from agent.doctor.look_files import look_above, look_at
from agent.trust.keys import SigningKey

UID = 990


def judged(about: About | Unknown | None, make: str | None = None) -> Check | None:
    found = judge(Files(uid=UID, user="dc-compute", files=(Named("it", about, "/there/it", make),)))
    return found[0] if found else None


def about(kind: Kind, mode: int, *, uid: int = UID) -> About:
    return About("/there/it", kind, True, uid, mode)


@pytest.mark.parametrize(
    ("kind", "mode", "uid", "state", "mend"),
    [
        (Kind.KEY, 0o600, UID, State.OK, None),
        (Kind.KEY, 0o400, 0, State.OK, None),
        (Kind.KEY, 0o640, UID, State.FAIL, "chmod 600 /there/it"),
        (Kind.KEY, 0o604, UID, State.FAIL, "chmod 600 /there/it"),
        (Kind.KEY, 0o620, UID, State.FAIL, "chmod 600 /there/it"),
        (Kind.KEY, 0o600, 1000, State.FAIL, "chown dc-compute /there/it"),
        (Kind.FOLDER, 0o700, UID, State.OK, None),
        (Kind.FOLDER, 0o750, UID, State.OK, None),
        (Kind.FOLDER, 0o711, UID, State.OK, None),
        (Kind.FOLDER, 0o755, UID, State.FAIL, "chmod go-rw /there/it"),
        (Kind.FOLDER, 0o770, UID, State.FAIL, "chmod 700 /there/it"),
        (Kind.SETTINGS, 0o644, 0, State.OK, None),
        (Kind.SETTINGS, 0o640, UID, State.OK, None),
        (Kind.SETTINGS, 0o664, UID, State.FAIL, "chmod go-w /there/it"),
        (Kind.SETTINGS, 0o646, UID, State.FAIL, "chmod go-w /there/it"),
        (Kind.ABOVE, 0o757, UID, State.FAIL, "chmod go-w /there/it"),
        (Kind.ABOVE, 0o777, 0, State.FAIL, "chmod go-w /there/it"),
        (Kind.ABOVE, 0o755, 1000, State.FAIL, "chown dc-compute /there/it"),
    ],
)
def test_a_mode_and_an_owner(kind: Kind, mode: int, uid: int, state: State, mend: str | None) -> None:
    found = judged(about(kind, mode, uid=uid))

    assert found is not None
    assert (found.state, found.mend) == (state, mend)


@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_folder_above_is_told_only_when_it_is_wrong(mode: int) -> None:
    assert judged(about(Kind.ABOVE, mode, uid=0)) is None


def test_a_key_that_an_access_list_keeps_to_the_agent_is_well() -> None:
    found = judged(replace(about(Kind.KEY, 0o440, uid=0), is_ours_alone=True))

    assert found is not None
    assert found.state is State.OK


@pytest.mark.parametrize(
    ("seen", "make", "state"),
    [(None, "dc-compute init", State.FAIL), (None, None, State.NOTE), (Unknown("no"), None, State.NOTE)],
)
def test_what_is_not_there(seen: Unknown | None, make: str | None, state: State) -> None:
    found = judged(seen, make)

    assert found is not None
    assert found.state is state
    assert found.mend == (make if state is State.FAIL else None)


def test_a_link_in_place_of_a_key_fails(tmp_path: Path) -> None:
    SigningKey.generate().save(tmp_path / "real.pem")
    (tmp_path / "key.pem").symlink_to(tmp_path / "real.pem")

    found = judge(Files(uid=os.getuid(), user="me", files=(look_at("key", tmp_path / "key.pem", Kind.KEY),)))

    assert [check.state for check in found] == [State.FAIL]


def test_files_are_looked_at_as_they_lie(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    SigningKey.generate().save(key)
    key.chmod(0o640)

    found = look_at("key", key, Kind.KEY)

    assert found.about == About(str(key), Kind.KEY, True, os.getuid(), 0o640, False)
    assert look_at("other", tmp_path / "other", Kind.KEY, make="m") == Named(
        "other", None, str(tmp_path / "other"), "m"
    )


def test_every_folder_above_is_looked_at() -> None:
    assert parents_of("/var/lib/dc-compute/identity.pem") == ["/", "/var", "/var/lib", "/var/lib/dc-compute"]
    assert [named.path for named in look_above(Path("/etc/passwd"))] == ["/", "/etc"]
