"""What `image try` says of a broken contract: its lines are the contract's, its facts the kernel's."""

import shutil

import pytest

from agent.devkit.breaches import RULES, SAID, breach_of, words_of
from agent.devkit.killed_calls import KilledCall, deadly_calls, name_of, parse
from agent.errors import BadOutput, JobFailed
from tests.test_docs import ROOT, document

X86_64 = 0xC000003E
KILLED = (
    "6,95245,25184255714,-;audit: type=1326 audit(1795689850.072:95245): auid=4294967295 uid=559752 gid=559752 "
    'ses=4294967295 pid=8918 comm="python3" exe="/usr/bin/python3.11" sig=31 arch=c000003e syscall=161 compat=0 '
    "ip=0x7fdfb1acc829 code=0x80000000"
)


@pytest.mark.parametrize("rule", RULES)
def test_every_line_stands_in_the_contract_word_for_word(rule: str) -> None:
    contract = " ".join(document("docs/contracts/container.md").text.split())

    assert RULES[rule].contract in contract


def test_every_cause_of_the_contract_has_its_line() -> None:
    words = ["exit:N", "signal:N", "oom", "timeout", "disk", "output", "seccomp", "image", "unknown"]

    assert {word.partition(":")[0] for word in words} <= RULES.keys()
    assert {rule for _, rule in SAID} <= RULES.keys()


def test_what_the_agent_refuses_is_told_by_the_line_that_it_breaks() -> None:
    told = {
        "the training left no model: no file under /data/model": "model",
        "performance.json is missing": "performance",
        "exactly one file named 'a' was expected, 2 were left": "prediction",
        "a symbolic link was left, not a regular file": "output",
    }

    assert {words: breach_of(BadOutput(words), "").contract for words in told} == {
        words: RULES[rule].contract for words, rule in told.items()
    }


def test_the_call_that_killed_is_told_with_its_program() -> None:
    breach = breach_of(JobFailed("run 'train' ended", "seccomp"), ": `chroot` by python3")

    assert breach.seen == "the kernel killed it for a system call that no job may make: `chroot` by python3"
    assert words_of("signal:11") == "it died by signal 11 (Segmentation fault)"


def test_a_record_of_the_kernel_gives_program_and_call_within_its_time() -> None:
    call = name_of(X86_64, 161)

    assert list(parse([KILLED, "something else"], 1795689849, 1795689851)) == [KilledCall("python3", call)]
    assert list(parse([KILLED], 1795689860, 1795689861)) == []


def test_a_number_has_its_name_where_libseccomp_is() -> None:
    if not shutil.which("runc", path="/usr/sbin:/usr/bin"):
        pytest.skip("libseccomp.so.2, which comes with runc")

    assert name_of(X86_64, 161) == "chroot"
    assert name_of(X86_64, 99999) == "number 99999"


def test_the_calls_that_a_profile_kills_for_are_read_from_it() -> None:
    for name in ("train", "predict", "problem"):
        deadly = deadly_calls(ROOT / "seccomp" / f"{name}.json")

        assert "io_uring_setup" in deadly
        assert "read" not in deadly
