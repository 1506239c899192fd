"""The policy admits what it lists and nothing else, and an order can lower a ceiling but never raise one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict

from agent.domain.approvals import Verdict, VerdictOn
from agent.domain.ceilings import DEFAULT_CEILINGS, Ceilings
from agent.domain.chain import TaskKind, plan
from agent.domain.ids import digest_of
from agent.domain.orders import Limits
from agent.errors import BadSettings, ImageDenied, PolicyRefused
from agent.trust.policy import HostPolicy
from tests.builders import (
    consortium,
    dataset,
    digest_named,
    key_of,
    policy_for,
    policy_text,
    preduplet,
    uuid_of,
)

WORLD = consortium()
ORDER = WORLD.order()
TASKS = plan(ORDER.order)


def test_a_policy_that_lists_everything_the_order_needs_admits_it() -> None:
    policy = policy_for(ORDER, datasets=[ref.id for ref in (dataset("a1"), dataset("b1"))], kinds=["learn"])

    policy.admit(ORDER, TASKS[:2])


def test_a_star_admits_every_dataset() -> None:
    policy_for(ORDER).admit(ORDER, TASKS)


def test_the_empty_policy_admits_nothing() -> None:
    with pytest.raises(PolicyRefused):
        HostPolicy.from_toml("").admit(ORDER, TASKS[:1])


@pytest.mark.parametrize("name", ["orchestrators", "images", "datasets", "kinds"])
def test_each_empty_list_admits_nothing(name: str) -> None:
    with pytest.raises(PolicyRefused, match=f"`{name}`"):
        policy_for(ORDER, **{name: []}).admit(ORDER, TASKS[:1])


def test_no_task_at_all_is_not_admitted() -> None:
    with pytest.raises(PolicyRefused, match="without a task"):
        policy_for(ORDER).admit(ORDER, [])


def test_another_orchestrator_is_refused_and_named() -> None:
    other = WORLD.order(key=WORLD.other_orchestrator)

    with pytest.raises(PolicyRefused, match=f'orchestrators.*"{WORLD.other_orchestrator.keyid}"'):
        policy_for(ORDER).admit(other, TASKS[:1])


@pytest.mark.parametrize("image", ["problem-image", "algo-image"])
def test_each_image_must_be_listed_by_its_exact_digest(image: str) -> None:
    others = [digest for digest in ORDER.order.images if digest != digest_named(image)]

    with pytest.raises(PolicyRefused, match=f'images.*"{digest_named(image)}"'):
        policy_for(ORDER, images=others).admit(ORDER, TASKS[:1])


def test_a_dataset_that_is_not_listed_is_refused_and_named() -> None:
    policy = policy_for(ORDER, datasets=[uuid_of("dataset/a1")])

    policy.admit(ORDER, TASKS[:1])
    with pytest.raises(PolicyRefused, match=f'datasets.*"{uuid_of("dataset/b1")}"'):
        policy.admit(ORDER, TASKS[:2])


def test_a_kind_that_is_not_listed_is_refused_and_named() -> None:
    policy = policy_for(ORDER, kinds=[TaskKind.LEARN])

    policy.admit(ORDER, TASKS[:4])
    with pytest.raises(PolicyRefused, match=r'kinds.*"test"'):
        policy.admit(ORDER, TASKS[4:])


def test_a_preduplet_needs_the_kind_predict_and_its_one_image() -> None:
    order = WORLD.order(preduplet())

    policy_for(order, kinds=["predict"]).admit(order, plan(order.order))
    with pytest.raises(PolicyRefused, match="kinds"):
        policy_for(order, kinds=["learn", "test"]).admit(order, plan(order.order))


def test_the_digest_is_that_of_the_exact_text() -> None:
    text = policy_text(ORDER)

    assert HostPolicy.from_toml(text).digest == digest_of(text.encode())
    assert HostPolicy.from_toml(text + "\n").digest != digest_of(text.encode())


@pytest.mark.parametrize(
    "rest",
    [
        "hold_unknown = 'yes'\n",
        "run_unknown = true\n",
        "digest = 'sha256:00'\n",
        "accept_missing = ['network']\n",
        "accept_missing = 'memory_bytes'\n",
        "ceilings = 3\n",
        "[ceilings]\nmemory = 3\n",
        "[ceilings]\npids = 0\n",
        "[ceilings]\npids = '10'\n",
        "[ceilings]\npids = 1.5\n",
        "kinds = ['learn']\n",  # twice
        "[",
    ],
)
def test_a_policy_that_is_not_understood_whole_is_refused(rest: str) -> None:
    with pytest.raises(BadSettings):
        policy_for(ORDER, rest=rest)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("datasets", "all"),
        ("datasets", ["*"]),
        ("images", ["latest"]),
        ("images", "*"),
        ("orchestrators", "*"),
        ("orchestrators", [key_of("o1").keyid[:16]]),
        ("kinds", ["detarget"]),
    ],
)
def test_only_datasets_know_a_star_and_names_are_exact(name: str, value: object) -> None:
    lists = {"orchestrators": [], "images": [], "datasets": "*", "kinds": []} | {name: value}
    text = "".join(f"{key} = {value!r}\n" for key, value in lists.items())

    with pytest.raises(BadSettings):
        HostPolicy.from_toml(text)


# ------------------------------------------------------------------ ceilings


def test_ceilings_that_the_policy_leaves_out_are_the_defaults() -> None:
    policy = policy_for(ORDER, rest="accept_missing = ['memory_bytes']\n[ceilings]\npids = 7\n")

    assert policy.accept_missing == ("memory_bytes",)
    assert asdict(policy.ceilings) == asdict(DEFAULT_CEILINGS) | {"pids": 7}


def test_an_order_that_asks_for_nothing_gets_the_hosts_maxima() -> None:
    assert policy_for(ORDER).ceilings_for(Limits()) == DEFAULT_CEILINGS


counts = st.integers(min_value=1, max_value=1 << 53)
ceilings = st.builds(Ceilings, **dict.fromkeys(Ceilings.__struct_fields__, counts))
limits = st.builds(Limits, **dict.fromkeys(Limits.__struct_fields__, st.none() | counts))


@given(maxima=ceilings, asked=limits)
def test_an_order_can_lower_a_ceiling_and_never_raise_one(maxima: Ceilings, asked: Limits) -> None:
    text = "[ceilings]\n" + "".join(f"{name} = {value}\n" for name, value in asdict(maxima).items())

    given_ = asdict(HostPolicy.from_toml(text).ceilings_for(asked))

    wanted = {name: value for name, value in asdict(asked).items() if value is not None}
    for name, maximum in asdict(maxima).items():
        assert given_[name] == min(maximum, wanted.get(name, maximum))


# ------------------------------------------------------------------ the operator's word

PROBLEM, ALGO = ORDER.order.images
HOLDS = "hold_unknown = true\n"


def ruled(**verdicts: Verdict) -> VerdictOn:
    """What the operator said of `algo` and `problem`."""
    told = {{"algo": ALGO, "problem": PROBLEM}[name]: verdict for name, verdict in verdicts.items()}
    return told.get


def test_unknown_images_are_refused_unless_the_policy_holds_them() -> None:
    with pytest.raises(PolicyRefused, match="images"):
        policy_for(ORDER, images=[PROBLEM]).admit_or_hold(ORDER, TASKS[:1])

    assert policy_for(ORDER, images=[PROBLEM], rest=HOLDS).admit_or_hold(ORDER, TASKS[:1]) == (ALGO,)
    assert policy_for(ORDER, images=[], rest=HOLDS).admit_or_hold(ORDER, TASKS[:1]) == (PROBLEM, ALGO)
    assert policy_for(ORDER, rest=HOLDS).admit_or_hold(ORDER, TASKS[:1]) == ()


def test_holding_admits_nothing_to_run() -> None:
    with pytest.raises(PolicyRefused, match=ALGO):
        policy_for(ORDER, images=[PROBLEM], rest=HOLDS).admit(ORDER, TASKS[:1])


@pytest.mark.parametrize("name", ["orchestrators", "datasets", "kinds"])
def test_an_order_that_lacks_another_term_is_not_held(name: str) -> None:
    with pytest.raises(PolicyRefused, match=name):
        policy_for(ORDER, images=[], rest=HOLDS, **{name: []}).admit_or_hold(ORDER, TASKS[:1])


@pytest.mark.parametrize("rest", ["", HOLDS])
def test_an_approved_image_counts_as_if_it_were_listed(rest: str) -> None:
    policy = policy_for(ORDER, images=[PROBLEM], rest=rest)

    policy.admit(ORDER, TASKS[:1], ruled(algo=Verdict.APPROVED))

    assert policy.admit_or_hold(ORDER, TASKS[:1], ruled(algo=Verdict.APPROVED)) == ()


@pytest.mark.parametrize("name", ["orchestrators", "datasets", "kinds"])
def test_an_approval_stands_for_no_other_term(name: str) -> None:
    with pytest.raises(PolicyRefused, match=name):
        policy_for(ORDER, **{name: []}).admit(
            ORDER, TASKS[:1], ruled(algo=Verdict.APPROVED, problem=Verdict.APPROVED)
        )


@pytest.mark.parametrize("images", [[PROBLEM, ALGO], [PROBLEM]], ids=["listed", "not listed"])
def test_a_denied_image_runs_nowhere_whatever_the_file_lists(images: list[str]) -> None:
    policy = policy_for(ORDER, images=images, rest=HOLDS)

    with pytest.raises(ImageDenied, match=ALGO):
        policy.admit(ORDER, TASKS[:1], ruled(algo=Verdict.DENIED))
    with pytest.raises(ImageDenied, match=ALGO):
        policy.admit_or_hold(ORDER, TASKS[:1], ruled(algo=Verdict.DENIED))
