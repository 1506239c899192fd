"""Types are made ready for decoding one thread at a time; and nobody decodes with one that was not."""

import ast
import subprocess
import sys
from pathlib import Path

import msgspec

from agent.domain.prepared import prepared

ROOT = Path(__file__).resolve().parents[2]
DECODING = {
    "msgspec.convert": 1,
    "msgspec.json.decode": 1,
    "msgspec.json.Decoder": 0,
}  # where the type stands

# Many types, each decoded by three threads at the same moment for the first time.
RACE = """
import sys, threading, types
import msgspec
from agent.domain.prepared import prepared

sys.setswitchinterval(1e-6)
module = types.ModuleType("raced")
sys.modules["raced"] = module
source = '''
import msgspec
class Part(msgspec.Struct, frozen=True):
    x: int
    y: "tuple[str, ...]" = ()
class Whole(msgspec.Struct, frozen=True):
    a: Part
    z: "tuple[Part, ...] | None" = None
'''
for _ in range(400):
    exec(source, module.__dict__)
    whole, together = module.Whole, threading.Barrier(3)

    def decode():
        together.wait()
        msgspec.convert({"a": {"x": 1, "y": ["q"]}, "z": [{"x": 2}]}, prepared(whole))

    threads = [threading.Thread(target=decode) for _ in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print("alive")
"""


class Point(msgspec.Struct, frozen=True):
    x: int


def test_threads_that_decode_a_type_for_the_first_time_at_once_live_on() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RACE], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_a_type_is_given_back_as_it_is() -> None:
    assert prepared(Point) is prepared(Point) is Point
    assert msgspec.convert([{"x": 1}], prepared(tuple[Point, ...])) == (Point(1),)


def test_nobody_decodes_with_a_type_that_was_not_prepared() -> None:
    bare = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "agent").rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in DECODING and not is_prepared(call)
    ]

    # Of settings come scalars and lists of them, before there is a second thread.
    assert bare == ["agent/config_sources.py", "agent/domain/prepared.py"]


def is_prepared(call: ast.Call) -> bool:
    """Whether it has no type, or a prepared one."""
    at = DECODING[ast.unparse(call.func)]
    kinds = [word.value for word in call.keywords if word.arg == "type"] or call.args[at : at + 1]
    return all(ast.unparse(kind).startswith("prepared(") for kind in kinds)
