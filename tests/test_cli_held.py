"""`held`, `approve`, `deny`: what the operator is shown, and that no image steers the terminal it is shown on."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from agent.api.operator import listen_for_operator
from agent.api.serving import serving
from agent.cli.held import MOST_CHARACTERS, MOST_LINES, file_line, mode_text
from agent.domain.approvals import Verdict
from agent.domain.ids import job_id
from agent.domain.images import ImageAbout, ImageDescription, ImageEntry, ImageLayer
from agent.domain.jobs import JobState
from agent.pipeline.advance import advance
from tests.api.house import House, open_house
from tests.builders import NOW, consortium, digest_named, policy_for
from tests.test_cli import FAILED, OK, Command, command, home, no_traceback  # noqa: F401 - fixtures

ORDER = consortium().order()
PROBLEM, ALGO = ORDER.order.images
STEERING = "\x1b]0;owned\x07\x1b[2J\u202egpj.exe\r\x9b31m"


def about(**changes: Any) -> ImageAbout:
    told: dict[str, Any] = {
        "image_id": digest_named("config"),
        "platform": "linux/amd64",
        "entrypoint": ("/bin/run", "me"),
        "env": (("PATH", "/bin"),),
        "labels": (("by", "a stranger"),),
        "size_bytes": 3 << 20,
        "layers": (ImageLayer(digest=digest_named("layer"), size_bytes=3 << 20, entries=2),),
        "entries": 2,
        "set_ids": 1,
        "is_cut": False,
    }
    return ImageAbout(**(told | changes))


def entry(path: str = "bin/su", **changes: Any) -> ImageEntry:
    told: dict[str, Any] = {"layer": 0, "path": path, "kind": "file", "size_bytes": 5, "mode": 0o4755}
    return ImageEntry(**(told | changes))


@pytest.fixture
def house(tmp_path: Path, home: Path) -> Any:  # noqa: F811
    """An agent behind its operator's socket at which one order waits."""
    policy = policy_for(ORDER, images=[PROBLEM], rest="hold_unknown = true\n")
    made = open_house(tmp_path, policy=policy)
    home.mkdir()
    (home / "agent.toml").write_text("[listen]\noperator_socket = 'op/operator.sock'\n")
    with ExitStack() as doors:
        listener = listen_for_operator(home / "op" / "operator.sock")
        doors.enter_context(serving(made.operator.app, listener, tls=None))
        yield made


def wait(house: House, description: ImageDescription, *listing: ImageEntry) -> None:
    """Let the order in, with its image read."""
    house.call(house.world.orchestrator, "POST", "/v1/learnuplets", ORDER.envelope)
    house.ledger.describe(description, listing)
    advance(job_id(ORDER.order.id, 0), house.host, "worker")


def described(**changes: Any) -> ImageDescription:
    return ImageDescription(image=ALGO, read_at=NOW, archive_bytes=1 << 20, about=about(**changes))


def state(house: House) -> JobState:
    return house.ledger.job(job_id(ORDER.order.id, 0)).state


def test_nothing_waits_at_first(command: Command, house: House) -> None:  # noqa: F811
    assert command("held").out == "nothing waits for you\n"
    assert command("held", "--json").json == {"held": []}


def test_what_waits_is_listed(command: Command, house: House) -> None:  # noqa: F811
    wait(house, described())

    said = command("held")

    assert said.code == OK, said.err
    assert ORDER.order.id in said.out
    assert ALGO in said.out
    assert "waits for you" in said.out
    assert command("held", "--json").json["held"][0]["order"] == ORDER.order.id


def test_an_image_is_shown_before_it_may_run(command: Command, house: House) -> None:  # noqa: F811
    wait(house, described(), entry(), entry("lib", kind="symbolic link", link="/usr/lib", mode=0o777))

    said = command("held", ALGO, "--files")

    assert said.code == OK, said.err
    for words in (
        "entrypoint   /bin/run me",
        "env          PATH=/bin",
        "label        by=a stranger",
        "platform     linux/amd64",
        "1 with a set-id bit",
        f"order {ORDER.order.id}",
        "-rwsr-xr-x            5 /bin/su",
        "lrwxrwxrwx            5 /lib -> /usr/lib",
    ):
        assert words in said.out
    assert len(command("held", ALGO, "--files", "--json").json["files"]) == 2
    assert "files" not in command("held", ALGO, "--json").json


def test_an_image_that_cannot_be_loaded_says_so(command: Command, house: House) -> None:  # noqa: F811
    wait(
        house,
        ImageDescription(image=ALGO, read_at=NOW, archive_bytes=5, problem="a layer makes '/dev' a link"),
    )

    assert "cannot be loaded: a layer makes" in command("held").out
    said = command("held", ALGO, "--files")
    assert "refused      a layer makes '/dev' a link" in said.out
    assert "would not be loaded even if you approved it" in said.out


def test_no_word_of_an_image_steers_the_terminal(command: Command, house: House) -> None:  # noqa: F811
    hostile = described(
        entrypoint=(STEERING,), env=(("A", STEERING),), labels=((STEERING, STEERING),), platform=STEERING
    )
    wait(house, hostile, entry(STEERING), entry("a\nfake line", kind="symbolic link", link=STEERING))

    outputs = [
        command("held", ALGO, "--files"),
        command("held", ALGO),
        command("held"),
        command("deny", ALGO, "--reason", STEERING),
        command("held", ALGO),
    ]

    for said in outputs:
        assert said.code == OK, said.err
        assert all(character.isprintable() or character == "\n" for character in said.out + said.err)
        assert "\nfake line" not in said.out


def test_endless_words_of_an_image_are_cut(command: Command, house: House) -> None:  # noqa: F811
    labels = tuple((f"label{number:05}", "x" * 10_000) for number in range(500))
    wait(house, described(labels=labels))

    said = command("held", ALGO)

    assert len(said.out) < (MOST_LINES + 20) * (MOST_CHARACTERS + 100)
    assert f"and {500 - MOST_LINES} more" in said.out


def test_a_long_listing_comes_whole_page_by_page(command: Command, house: House) -> None:  # noqa: F811
    wait(house, described(entries=3000), *(entry(f"f{number}") for number in range(3000)))

    said = command("held", ALGO, "--files")

    assert said.out.count("-rwsr-xr-x") == 3000


@pytest.mark.parametrize("target", [ALGO, ORDER.order.id], ids=["image", "order"])
def test_approving_lets_the_order_go_on(command: Command, house: House, target: str) -> None:  # noqa: F811
    wait(house, described())

    said = command("approve", target, "--reason", "read it")

    assert said.code == OK, said.err
    assert f"approved {ALGO}" in said.out
    assert "is received" in said.out
    assert state(house) is JobState.RECEIVED
    (ruling,) = house.ledger.rulings()
    assert (ruling.verdict, ruling.reason) == (Verdict.APPROVED, "read it")
    assert command("approve", target).code == OK
    assert len(house.ledger.rulings()) == 1


def test_denying_ends_it(command: Command, house: House) -> None:  # noqa: F811
    wait(house, described())

    said = command("deny", ORDER.order.id, "--json")

    assert said.json["rulings"][0]["verdict"] == "denied"
    assert state(house) is JobState.FAILED


def test_a_word_on_an_order_that_changes_no_earlier_word_says_so_and_is_no_success(
    command: Command,  # noqa: F811
    house: House,
) -> None:
    """Who denies an order must not go away believing that its image is denied."""
    wait(house, described())
    command("approve", ALGO)

    said = command("deny", ORDER.order.id)

    assert said.code == FAILED
    assert f"your earlier word on {ALGO} stands" in said.err
    assert house.ledger.verdict_on(ALGO) is Verdict.APPROVED
    assert command("deny", ORDER.order.id, "--json").code == FAILED
    assert command("deny", ALGO).code == OK


@pytest.mark.parametrize("target", ["latest", "sha256:12", "../../etc/passwd"])
def test_what_is_neither_image_nor_order_is_refused(command: Command, house: House, target: str) -> None:  # noqa: F811
    for said in (command("approve", target), command("held", target)):
        assert said.code == FAILED
        assert no_traceback(said)


@pytest.mark.parametrize(
    ("kind", "mode", "text"),
    [
        ("file", 0o644, "-rw-r--r--"),
        ("folder", 0o1777, "drwxrwxrwt"),
        ("file", 0o6711, "-rws--s--x"),
        ("file", 0o7000, "---S--S--T"),
        ("symbolic link", 0o777, "lrwxrwxrwx"),
        ("hard link", 0o600, "hrw-------"),
    ],
)
def test_modes_are_written_as_ls_does(kind: str, mode: int, text: str) -> None:
    assert mode_text(entry(kind=kind, mode=mode)) == text
    assert text in file_line(entry(kind=kind, mode=mode))
