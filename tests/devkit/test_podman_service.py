"""Podman's storage is never shared by two boots: each would take the other's containers for its own lost ones."""

from pathlib import Path

from agent.devkit.podman_service import claimed_root


def test_services_of_one_boot_share_the_storage(tmp_path: Path) -> None:
    runtime_dir = tmp_path / "run"
    runtime_dir.mkdir()

    with (
        claimed_root(tmp_path / "storage", runtime_dir) as one,
        claimed_root(tmp_path / "storage", runtime_dir) as two,
    ):
        assert one == two == tmp_path / "storage"


def test_another_boot_takes_another_storage_while_the_first_is_in_use(tmp_path: Path) -> None:
    boots = [tmp_path / "run-1", tmp_path / "run-2"]
    for boot in boots:
        boot.mkdir()

    with claimed_root(tmp_path / "storage", boots[0]), claimed_root(tmp_path / "storage", boots[1]) as other:
        assert other == tmp_path / "storage-2"
    with claimed_root(tmp_path / "storage", boots[1]) as later:
        assert later == tmp_path / "storage"


def test_a_boot_goes_on_with_the_storage_it_has_begun_with(tmp_path: Path) -> None:
    boots = [tmp_path / "run-1", tmp_path / "run-2"]
    for boot in boots:
        boot.mkdir()

    with (
        claimed_root(tmp_path / "storage", boots[0]),
        claimed_root(tmp_path / "storage", boots[1]) as first,
        claimed_root(tmp_path / "storage", boots[1]) as second,
    ):
        assert first == second == tmp_path / "storage-2"
