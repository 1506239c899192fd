"""The environment of the workload tests: which build of torch is taken, and what is said where there is none."""

import platform
from pathlib import Path

import pytest

from agent.devkit import workloads

OF_THE_CPU = ["filelock", "typing-extensions>=4.10.0", "setuptools>=77.0.3", 'pyyaml; extra == "pyyaml"']
HERE, ELSEWHERE = platform.machine(), "aarch64" if platform.machine() == "x86_64" else "x86_64"


def test_a_cpu_build_of_torch_is_taken() -> None:
    assert workloads.refusal("2.13.0+cpu", OF_THE_CPU) is None


@pytest.mark.parametrize(
    "requirement",
    [
        "nvidia-cudnn-cu13==9.20.0.48",
        'nvidia-cublas==13.1.0.3; platform_system == "Linux"',
        f'nvidia-nccl-cu13==2.28.9; platform_system == "Linux" and platform_machine == "{HERE}"',
        'cuda-toolkit[cudart]==13.0.2; platform_system == "Linux"',
        'triton==3.6.0; platform_system == "Linux"',
    ],
)
def test_a_build_of_torch_that_requires_what_a_gpu_needs_is_left_out_and_named(requirement: str) -> None:
    said = workloads.refusal("2.13.0", [*OF_THE_CPU, requirement])

    assert said is not None
    assert f"offers 2.13.0, which requires {requirement.partition(';')[0]}" in said


def test_what_another_processor_or_an_extra_requires_does_not_count() -> None:
    elsewhere = f'nvidia-cudnn-cu13==9.20; platform_machine == "{ELSEWHERE}"'

    assert workloads.refusal("2.13.0", [*OF_THE_CPU, elsewhere, 'triton; extra == "compile"']) is None


def test_an_environment_that_is_missing_or_of_another_lock_is_named(tmp_path: Path) -> None:
    assert "make test-host" in str(workloads.why_not(tmp_path))
    (tmp_path / ".made-from").write_text("another lock")
    assert "make test-host" in str(workloads.why_no_torch(tmp_path))

    (tmp_path / ".made-from").write_text(workloads._stamp())
    assert workloads.why_not(tmp_path) is None
    assert workloads.why_no_torch(tmp_path) is None
    (tmp_path / ".no-torch").write_text("a CPU build")
    assert workloads.why_no_torch(tmp_path) == "a CPU build"
