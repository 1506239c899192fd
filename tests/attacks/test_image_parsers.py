"""What an image's author puts into an archive: the checker must end, stay small, and see the same files as the engine.

Go's archive/tar (Podman) and CPython's tarfile read some bytes differently; each difference hides entries from the checker.
"""

import gzip
import io
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from msgspec import json as msgspec_json

from agent.domain.ceilings import DEFAULT_CEILINGS
from agent.domain.ids import digest_of
from agent.errors import BadImage, BadOutput
from agent.pipeline.outputs import unpack
from agent.ports.image_archive import inspect
from agent.ports.image_layers import Budget, check_layer
from tests.ports.test_image_archive import Image

END = b"\0" * 1024
MIB = 1 << 20


def head(name: str, kind: bytes = tarfile.REGTYPE, *, size: int = 0, link: str = "") -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size, entry.linkname = kind, size, link
    return entry.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def with_checksum_after_a_zero_byte(header: bytes) -> bytes:
    """Go trims zero bytes on both sides of an octal field, tarfile reads up to the first one."""
    raw = bytearray(header)
    raw[148:156] = b" " * 8
    raw[148:156] = b"\0%06o " % sum(raw)
    return bytes(raw)


BENIGN = head("bin/program")
DATA_IS_A_LINK = head("data", tarfile.SYMTYPE, link="/etc")


def judge(layer: bytes) -> None:
    check_layer(io.BytesIO(layer), Budget())


def test_a_layer_whose_entry_claims_exbibytes_is_refused_and_not_read_for_weeks() -> None:
    """Promise 1 (and availability of the whole host): one such image hangs a worker's thread for ever.

    `tarfile`'s stream "seeks" over the claimed size in steps of 1 MiB, also behind the end of the file: 2^62 bytes are
    4·10^12 reads. The heartbeat goes on renewing the lease, no wall clock counts outside of a container, so the job stays
    RUNNING, its queue (one thread) stands still, and after a restart the next attempt hangs again. `image add` hangs too.
    Mend: agent/ports/image_layers.py:86 (loop of check_layer): refuse `member.size` < 0 or > MAX_BYTES -
    budget.used_bytes, in `_check_entry`, which runs before the seek.
    """
    program = (
        "import io, tarfile\n"
        "from agent.errors import BadImage\n"
        "from agent.ports.image_layers import Budget, check_layer\n"
        "entry = tarfile.TarInfo('bin/program'); entry.size = 1 << 62\n"
        "layer = entry.tobuf(tarfile.GNU_FORMAT) + bytes(1024)\n"
        "try: check_layer(io.BytesIO(layer), Budget())\n"
        "except BadImage: print('refused')\n"
    )
    root = Path(__file__).resolve().parents[2]

    try:
        told = subprocess.run(
            [sys.executable, "-B", "-c", program],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired:
        told = "still reading after 20 s"

    assert told == "refused\n"


def test_a_layer_costs_no_memory_whatever_its_headers_claim() -> None:
    """Hostile image: 64 MiB here, up to 32 GiB in a gzip of 32 MiB: a GNU long name (or PAX header) is read into memory
    whole, twice, before its length is judged (MAX_NAME_CHARS comes too late). The worker is outside of every cage: it is
    killed.

    Mend: agent/ports/image_layers.py:83: give tarfile.open a TarInfo subclass whose `_proc_gnulong`/`_proc_pax` (or
    `frombuf`) refuse an extension header over, say, 1 MiB; the same for agent/ports/image_archive.py:116.
    """
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as layer:
        layer.write(head("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=64 * MIB))
        for _ in range(64):
            layer.write(b"a" * MIB)
        layer.write(BENIGN + END)
    tracemalloc.start()

    try:
        with pytest.raises(BadImage):
            judge(out.getvalue())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 32 * MIB


def test_a_layer_with_six_hundred_long_names_in_a_row_is_a_bad_image() -> None:
    """Promise 5: tarfile recurses once for each extension header; RecursionError is no AgentError: no code, no receipt,
    and the attempts are all spent as "worker-lost" / `unknown` instead of one refusal `image`.

    Mend: agent/ports/image_layers.py:94 and agent/ports/image_archive.py:118: catch RecursionError too.
    """
    chain = (head("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=4) + b"abc\0".ljust(512, b"\0")) * 600

    with pytest.raises(BadImage):
        judge(chain + BENIGN + END)


def test_an_entry_behind_a_header_that_only_go_reads_is_seen() -> None:
    """Container contract, "Images, before load": at a header whose checksum tarfile cannot read it *silently stops*; Go
    reads on. So every check of a layer (links at the cage's mount points, devices, `..`) is skipped for all entries
    behind one of them.

    Mend: agent/ports/image_layers.py:93: what follows the last entry must be zero bytes only (read the rest, refuse
    others); or a TarInfo subclass whose `fromtarfile` turns InvalidHeaderError and TruncatedHeaderError into ReadError.
    The same in agent/ports/image_archive.py:144 (`_members`).
    """
    with pytest.raises(BadImage):
        judge(BENIGN + with_checksum_after_a_zero_byte(DATA_IS_A_LINK) + END)


def test_a_global_header_renames_nothing() -> None:
    """The same contract: tarfile applies a PAX *global* header's `path` and `linkpath` to every entry after it, Go and
    Podman ignore global headers. So the names that are judged are not the names that are unpacked.

    Mend: agent/ports/image_layers.py:87: refuse the layer when `layer.pax_headers` is not empty; likewise
    image_archive.py:147.
    """
    renaming = tarfile.TarInfo.create_pax_global_header({"path": "usr/benign"})

    with pytest.raises(BadImage):
        judge(renaming + DATA_IS_A_LINK + END)


def test_a_link_made_through_a_folder_that_is_a_link_is_seen() -> None:
    """The same contract: `x -> .` and then `x/data -> /etc` makes /data a link, for Podman unpacks through links within
    the root.

    Mend: agent/ports/image_layers.py:132: remember the links of all layers, and refuse an entry below one of them.
    (The look at the mounts before the start would still refuse such a container: this is the second wall, not the last.)
    """
    through = head("x", tarfile.SYMTYPE, link=".") + head("x/data", tarfile.SYMTYPE, link="/etc")

    with pytest.raises(BadImage):
        judge(through + END)


def test_an_archive_with_a_second_index_under_another_spelling_is_refused(tmp_path: Path) -> None:
    """Promise 2 (what runs is what the order names by digest): the archive is unpacked by Podman into a folder, where both
    spellings are one file and the *last* counts; the checker reads the first. See test_replaced_image.py for what that
    gives.

    Mend: agent/ports/image_archive.py:150: refuse every member whose name is not its own `posixpath.normpath` (after one
    "./").
    """
    image = Image()
    image.files["././index.json"] = b'{"schemaVersion": 2, "manifests": []}'

    with pytest.raises(BadImage):
        inspect(image.write(tmp_path / "image.tar"), digest_of(b"any"))


def test_the_refusal_of_a_link_can_be_written_down() -> None:
    """Promise 5: the place of a refused link is quoted raw (`{place:.120}`): a name that is not UTF-8 puts a lone
    surrogate into the message, `record_event` cannot encode it, `_end_badly` crashes, and the refusal becomes lost
    attempts.

    Mend: agent/ports/image_layers.py:144: `{place!r:.120}`.
    """
    with pytest.raises(BadImage) as refusal:
        judge(head("data/\udcff\x1b[2J", tarfile.SYMTYPE, link="/etc") + END)

    assert msgspec_json.encode(refusal.value.detail)


# ------------------------------------------------------------------ models, which come from other hosts


def test_a_model_with_six_hundred_long_names_in_a_row_is_a_bad_output(tmp_path: Path) -> None:
    """Promise 5/6, hostile peer: RecursionError is none of what `unpack` translates: every attempt crashes and is told as
    `unknown`, though trying again is pointless. Mend: agent/pipeline/outputs.py:118: catch RecursionError too."""
    chain = (head("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=4) + b"abc\0".ljust(512, b"\0")) * 600
    (tmp_path / "model.tar").write_bytes(chain + BENIGN + END)
    (tmp_path / "model").mkdir()

    with pytest.raises(BadOutput):
        unpack(tmp_path / "model.tar", tmp_path / "model", DEFAULT_CEILINGS)


def test_a_model_costs_no_memory_whatever_its_headers_claim(tmp_path: Path) -> None:
    """Hostile peer: a long name counts against no ceiling and is held in memory twice: 2 x max_model_bytes (8 GiB) in the
    worker.
    Mend: agent/pipeline/outputs.py:106: the TarInfo subclass of the layers here too."""
    with (tmp_path / "model.tar").open("wb") as file:
        file.write(head("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=64 * MIB))
        for _ in range(64):
            file.write(b"a" * MIB)
        file.write(BENIGN + END)
    (tmp_path / "model").mkdir()
    tracemalloc.start()

    try:
        with pytest.raises(BadOutput):
            unpack(tmp_path / "model.tar", tmp_path / "model", DEFAULT_CEILINGS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 32 * MIB
