"""The chain: the same list of tasks from the same order, on every host."""

from hypothesis import given
from hypothesis import strategies as st

from agent.domain.chain import Task, TaskKind, images_for, plan, task_at
from agent.domain.orders import Order, parse_order
from agent.domain.strict_json import encode
from tests.domain.values import dataset, digest_named, learnuplet, preduplet

NAMES = st.lists(st.text("abcdefghijklmnop", min_size=1, max_size=4), unique=True, min_size=1, max_size=20)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Any split of datasets into training and test ones, or any to predict on."""
    names = draw(NAMES)
    if draw(st.booleans()):
        return preduplet(data=tuple(dataset(name) for name in names))
    cut = draw(st.integers(0, len(names)))
    train, test = names[:cut], names[cut:]
    return learnuplet(
        train_data=tuple(dataset(name) for name in train), test_data=tuple(dataset(name) for name in test)
    )


def test_a_learnuplet_learns_in_order_and_then_tests() -> None:
    assert plan(learnuplet()) == (
        Task(0, TaskKind.LEARN, dataset("a")),
        Task(1, TaskKind.LEARN, dataset("b")),
        Task(2, TaskKind.TEST, dataset("c")),
    )


def test_a_preduplet_predicts_in_order() -> None:
    assert plan(preduplet()) == (
        Task(0, TaskKind.PREDICT, dataset("a")),
        Task(1, TaskKind.PREDICT, dataset("b")),
    )


@given(orders())
def test_every_dataset_gives_one_task_and_positions_have_no_gaps(order: Order) -> None:
    tasks = plan(order)

    assert [task.position for task in tasks] == list(range(len(tasks)))
    assert len({task.dataset for task in tasks}) == len(tasks) > 0


@given(orders())
def test_the_plan_comes_from_the_bytes_alone(order: Order) -> None:
    assert plan(parse_order(order.payload_type, encode(order))) == plan(order)


@given(orders())
def test_a_task_is_found_by_its_position(order: Order) -> None:
    assert tuple(task_at(order, position) for position in range(len(plan(order)))) == plan(order)


@given(orders())
def test_nothing_is_learnt_after_the_first_test(order: Order) -> None:
    kinds = [task.kind for task in plan(order)]

    assert kinds == sorted(kinds, key=[TaskKind.LEARN, TaskKind.TEST, TaskKind.PREDICT].index)


def test_only_a_test_runs_the_problem_image() -> None:
    learn, _, test = plan(learnuplet())
    predict = plan(preduplet())[0]
    algo, problem = ("algo", digest_named("algo image")), ("problem", digest_named("problem image"))

    assert list(images_for(learnuplet(), learn)) == [algo]
    assert list(images_for(learnuplet(), test)) == [problem, algo]
    assert list(images_for(preduplet(), predict)) == [algo]


def test_every_kind_has_the_word_that_a_datasets_header_uses() -> None:
    assert [kind.use for kind in TaskKind] == ["train", "test", "predict"]
