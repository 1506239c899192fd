"""No order widens the cage: under whatever policy and on whatever host, it gets what the policy gives, or less.

The cage that is asked for under an order is flattened and held against the one that the policy alone asks for. Each value is
the same, or stands in LOWERED and is no higher. A runtime takes part by one line in FORMS.
Source: docs/contracts/container.md, "never an option of the order".
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict, fields, replace

from agent.domain.ceilings import Ceilings
from agent.domain.ids import KeyId, OrderId, digest_of
from agent.domain.orders import ImageRef, Learnuplet, Limits, ModelRef, Order, Preduplet
from agent.domain.strict_json import decode, encode
from agent.errors import BadOrder
from agent.ports import cage
from agent.ports.runtime import Mount, RunKind, RunSpec
from agent.ports.runtime_podman_body import Names, create_body
from agent.ports.runtime_runc_config import oci_config
from agent.trust.policy import HostPolicy
from tests.builders import NOW, consortium, dataset, key_of, policy_text, uuid_of
from tests.pipeline.world import World

WORLD = consortium()
WORKSPACE = Path("/ws")
SECCOMP = {"defaultAction": "SCMP_ACT_ERRNO"}

# ------------------------------------------------------------------ orders, policies, hosts

NUMBERS = st.one_of(
    st.integers(1, 1 << 53), st.sampled_from([1, 15, 16, 17, 31, 32, 255, 4095, 4096, 4097, 1 << 28, 1 << 53])
)
UUIDS = st.sampled_from([uuid_of(name) for name in ("x", "y", "z")])
DIGESTS = st.binary(min_size=1, max_size=2).map(digest_of)
IMAGES = st.builds(ImageRef, UUIDS, DIGESTS)
MODELS = st.builds(ModelRef, DIGESTS, st.sampled_from([key_of("agent-a").keyid, key_of("agent-c").keyid]))
LIMITS: st.SearchStrategy[Limits] = st.builds(
    Limits, **{field.name: st.one_of(st.none(), NUMBERS) for field in fields(Limits)}
)
DATASETS = st.lists(
    st.sampled_from(["a1", "a2", "b1", "b2", "c1", "c2"]), min_size=1, max_size=6, unique=True
)
CEILINGS: st.SearchStrategy[Ceilings] = st.builds(
    Ceilings, **{field.name: NUMBERS for field in fields(Ceilings)}
)
FACTS: st.SearchStrategy[cage.EngineFacts] = st.builds(
    cage.EngineFacts,
    version=st.just("an engine"),
    controllers=st.frozensets(st.sampled_from(["cpu", "memory", "pids", "io"])),
    id_count=st.sampled_from([65536, 131072, 524288]),
    cgroup_version=st.sampled_from([1, 2]),
    hard_limits=st.dictionaries(
        st.sampled_from(["RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_DATA"]), NUMBERS
    ),
)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Everything that an order can say."""
    names = draw(DATASETS)
    cut = draw(st.integers(0, len(names)))
    opens = NOW + timedelta(seconds=draw(st.integers(-(10**6), 10**6)))
    shared: dict[str, Any] = {
        "id": OrderId(draw(UUIDS)),
        "orchestrator": KeyId(key_of(draw(st.sampled_from(["o1", "o2"]))).keyid),
        "problem": draw(UUIDS),
        "algo_image": draw(IMAGES),
        "limits": draw(LIMITS),
        "max_attempts": draw(st.integers(1, 100)),
        "not_before": opens,
        "expires": opens + timedelta(seconds=draw(st.integers(1, 10**8))),
    }
    if draw(st.booleans()):
        return Preduplet(model=draw(MODELS), data=tuple(dataset(name) for name in names), **shared)
    return Learnuplet(
        problem_image=draw(IMAGES),
        model_start=draw(st.one_of(st.none(), MODELS)),
        model_end=draw(UUIDS),
        rank=draw(st.integers(0, 1 << 31)),
        train_data=tuple(dataset(name) for name in names[:cut]),
        test_data=tuple(dataset(name) for name in names[cut:]),
        **shared,
    )


@st.composite
def policies(draw: st.DrawFn) -> HostPolicy:
    """A policy with any maxima: what it admits is not the question here."""
    lines = [f"{name} = {value}" for name, value in asdict(draw(CEILINGS)).items()]
    missing = draw(st.sets(st.sampled_from(["memory_bytes", "cpu_millis", "pids"])))
    rest = f"accept_missing = {sorted(missing)}\n[ceilings]\n" + "\n".join(lines)
    return HostPolicy.from_toml(policy_text(orchestrators=[], images=[], rest=rest))


def spec_under(
    limits: Limits, policy: HostPolicy, kind: RunKind, args: tuple[str, ...] = ("-T", "x")
) -> RunSpec:
    """One run as `pipeline.run` describes it, with the ceilings that this order leaves."""
    return RunSpec(
        name="dc-run",
        labels={"dc-compute.job": "j.0"},
        image=digest_of(b"image"),
        kind=kind,
        args=args,
        mounts=(
            Mount(WORKSPACE / "data", "/data"),
            Mount(WORKSPACE / "model", "/data/model", is_writable=True),
        ),
        ceilings=policy.ceilings_for(limits),
        accept_missing=frozenset(policy.accept_missing),
    )


# ------------------------------------------------------------------ each form of the cage

IMAGE = cage.StoredImage(id="ab" * 32, size_bytes=1, entrypoint=("/run",), env={"PATH": "/bin"})
Form = Callable[[RunSpec, cage.EngineFacts], Any]


def podman_body(spec: RunSpec, facts: cage.EngineFacts) -> Any:
    return create_body(spec, IMAGE, Names(spec.name, spec.labels), 2, f"/seccomp/{spec.kind}.json", facts)


def runc_bundle(spec: RunSpec, facts: cage.EngineFacts) -> Any:
    sources = [f"/mnt/m{number}" for number, _ in enumerate(spec.mounts)]
    return oci_config(spec, IMAGE, 2, SECCOMP, facts, root="/mnt/root", sources=sources, cgroup="/given/x")


def what_is_checked(spec: RunSpec, facts: cage.EngineFacts) -> Any:
    return msgspec.to_builtins(cage.asked_for(spec, IMAGE, 2, SECCOMP, facts))


def what_is_told(spec: RunSpec, facts: cage.EngineFacts) -> Any:
    return cage.applied_ceilings(spec.ceilings, facts)


FORMS: dict[str, Form] = {
    "podman's create body": podman_body,
    "runc's bundle": runc_bundle,
    "what is compared before the start": what_is_checked,
    "what the receipt tells": what_is_told,
    "the ceilings": lambda spec, _: asdict(spec.ceilings),
    "the gaps that are accepted": lambda spec, _: sorted(spec.accept_missing),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())

# What runs of each kind are called with: docs/contracts/container.md, the table of runs.
CONTRACT = (
    (RunKind.TRAIN, ("-V", "/data", "-T", "train")),
    (RunKind.PREDICT, ("-V", "/data", "-T", "predict")),
    (RunKind.PROBLEM, ("-T", "detarget", "-i", "/hidden_data", "-s", "/submission_data")),
    (RunKind.PROBLEM, ("-T", "perf", "-i", "/hidden_data", "-s", "/submission_data")),
)

# Numbers that an order may lower, by their place in a form; everything else is the same or stands in MAY_DIFFER.
LOWERED = (
    r"(wall_s|memory_bytes|cpu_millis|pids|output_bytes)",
    r"timeout",
    r"r_limits/\w+/(soft|hard)",
    r"resource_limits/(memory/(limit|swap)|cpu/quota|pids/limit)",
    r"rlimits/RLIMIT_\w+",
    r"cgroup/(memory\.max|cpu\.max|pids\.max)",
    r"cgroup/(memory/memory\.(memsw\.)?limit_in_bytes|cpu/cpu\.cfs_quota_us|pids/pids\.max)",
    r"process/rlimits/RLIMIT_\w+/(soft|hard)",
    r"linux/resources/(memory/(limit|swap)|cpu/quota|pids/limit)",
)


def flat(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(place, value) of every leaf. Members of a list stand under what names them, else under their number."""
    if isinstance(tree, Mapping):
        for name, below in tree.items():
            yield from flat(below, f"{place}/{name}" if place else str(name))
    elif isinstance(tree, Sequence) and not isinstance(tree, str | bytes):
        yield f"{place}/count", len(tree)
        for number, below in enumerate(tree):
            named = below.get("type") if isinstance(below, Mapping) and "soft" in below else None
            yield from flat(below, f"{place}/{number if named is None else named}")
    else:
        yield place, tree


def number_in(value: Any) -> int:
    """The ceiling in a leaf: 5, "5 by cgroup", "5 100000"."""
    return int(re.match(r"\d+", str(value))[0])  # type: ignore[index]


def wider(under_order: Any, alone: Any) -> list[str]:
    """Where the cage under the order differs from the policy's own otherwise than by a lower ceiling."""
    ours, theirs = dict(flat(under_order)), dict(flat(alone))
    found = [f"{place} is there for one of them only" for place in ours.keys() ^ theirs.keys()]
    for place in ours.keys() & theirs.keys():
        mine, most = ours[place], theirs[place]
        if mine == most:
            continue
        if not any(re.fullmatch(pattern, place) for pattern in LOWERED):
            found.append(f"{place} is {mine!r}, not {most!r}")
        elif number_in(mine) > number_in(most) or str(mine).lstrip("0123456789") != str(most).lstrip(
            "0123456789"
        ):
            found.append(f"{place} is {mine!r}, over {most!r}")
    return found


# ------------------------------------------------------------------ the property


@every_form
@given(order=orders(), policy=policies(), facts=FACTS, kind=st.sampled_from(RunKind))
def test_an_order_gets_no_wider_cage_than_the_policy_alone(
    form: Form, order: Order, policy: HostPolicy, facts: cage.EngineFacts, kind: RunKind
) -> None:
    signed = WORLD.order(order, key=key_of("o1" if order.orchestrator == key_of("o1").keyid else "o2"))

    under_order = form(spec_under(signed.order.limits, policy, kind), facts)
    alone = form(spec_under(Limits(), policy, kind), facts)

    assert wider(under_order, alone) == []
    assert alone == form(replace(spec_under(Limits(), policy, kind), ceilings=policy.ceilings), facts)


@given(limits=LIMITS, policy=policies())
def test_each_ceiling_is_what_was_asked_for_or_the_policy_s(limits: Limits, policy: HostPolicy) -> None:
    given_ceilings, most = asdict(policy.ceilings_for(limits)), asdict(policy.ceilings)

    for name, value in given_ceilings.items():
        asked = getattr(limits, name, None)
        assert value == (most[name] if asked is None else min(asked, most[name]))


NOT_THE_ORDER_S = sorted(
    {field.name for field in fields(Ceilings)} - {field.name for field in fields(Limits)}
)
WISHES = st.one_of(
    st.sampled_from([*NOT_THE_ORDER_S, "privileged", "network", "image", "env"]), st.text(max_size=20)
)


@given(order=orders(), name=WISHES, value=st.one_of(st.integers(), st.text(), st.booleans()))
def test_an_order_that_asks_for_anything_else_is_none(order: Order, name: str, value: Any) -> None:
    tree = msgspec.to_builtins(order)
    known = {field.name for field in (*fields(Limits), *fields(type(order)))}
    assume(name not in known)

    for asking in (tree | {name: value}, tree | {"limits": {name: value}}):
        with pytest.raises(BadOrder):
            decode(encode(asking), type(order), limit_bytes=1 << 20, what="the order")


@settings(max_examples=25, deadline=None)
@given(limits=LIMITS)
def test_every_run_of_an_order_is_described_within_the_policy(limits: Limits) -> None:
    """The walk itself: learn, then detarget, predict and perf of a test task, as the runtime is asked for them."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        order = world.order(train=("a1",), test=("a2",), limits=limits)
        world.post(order, world.a)

        world.work()

        policy = world.a.host.policy
        assert {spec.name.rpartition("-")[2] for spec in world.a.runtime.specs} >= {"train"}
        for spec in world.a.runtime.specs:
            assert wider(asdict(spec.ceilings), asdict(policy.ceilings)) == []
            assert spec.accept_missing == frozenset(policy.accept_missing)
            assert spec.image in order.order.images
            assert all(mount.source.is_relative_to(world.a.workspaces) for mount in spec.mounts)
            assert (spec.kind, spec.args) in CONTRACT


# ------------------------------------------------------------------ the comparison itself


@pytest.mark.parametrize(
    "change",
    [
        {"privileged": True},
        {"cap_drop": []},
        {"netns": {"nsmode": "host"}},
        {"timeout": 10**9},
        {"seccomp_profile_path": "/seccomp/other.json"},
        {"mounts": []},
        {"user": "0:0"},
        {"devices": [{"path": "/dev/kmsg"}]},
    ],
    ids=str,
)
def test_the_comparison_sees_a_wider_cage(change: dict[str, Any]) -> None:
    facts = cage.EngineFacts(version="v", controllers=frozenset(), id_count=524288, hard_limits={})
    policy = HostPolicy.from_toml("")
    alone = podman_body(spec_under(Limits(), policy, RunKind.TRAIN), facts)

    assert wider(alone, alone) == []
    assert wider(alone | change, alone) != []
