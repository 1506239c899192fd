"""The transition table: what every walk through it has in common."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.domain.jobs import FINAL, TRANSITIONS, IllegalMove, JobEvent, JobState, follow

EVENTS = st.lists(st.sampled_from(JobEvent), max_size=30)


def walk(events: list[JobEvent]) -> list[JobState]:
    """The states a job passes when it takes each of these events that the table has for it."""
    states = [JobState.RECEIVED]
    for event in events:
        if (states[-1], event) in TRANSITIONS:
            states.append(follow(states[-1], event))
    return states


@given(st.sampled_from(JobState), st.sampled_from(JobEvent))
def test_what_the_table_lacks_is_illegal_and_says_so(state: JobState, event: JobEvent) -> None:
    if (state, event) in TRANSITIONS:
        assert follow(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalMove, match=f"a {state} job cannot {event}"):
            follow(state, event)


def test_exactly_the_last_four_states_are_final() -> None:
    last_four = [JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED]

    assert list(JobState)[-4:] == last_four
    assert set(last_four) == FINAL


def test_every_state_is_reached_and_every_event_is_used() -> None:
    assert {JobState.RECEIVED, *TRANSITIONS.values()} == set(JobState)
    assert {event for _, event in TRANSITIONS} == set(JobEvent)


def test_every_open_state_can_end() -> None:
    can_end = set(FINAL)
    for _ in JobState:
        can_end |= {before for (before, _), after in TRANSITIONS.items() if after in can_end}

    assert can_end == set(JobState)


def test_every_move_changes_the_state() -> None:
    assert all(before is not after for (before, _), after in TRANSITIONS.items())


@given(EVENTS)
def test_nothing_follows_a_final_state(events: list[JobEvent]) -> None:
    states = walk(events)

    assert not FINAL & set(states[:-1])


@given(EVENTS)
def test_a_job_runs_only_out_of_the_queue(events: list[JobEvent]) -> None:
    states = walk(events)

    for before, after in pairwise(states):
        assert after is not JobState.RUNNING or before is JobState.QUEUED


@given(EVENTS)
def test_an_attested_job_ran_here_or_in_an_earlier_life_and_never_runs_again(events: list[JobEvent]) -> None:
    states = walk(events)

    if JobState.ATTESTED in states:
        place = states.index(JobState.ATTESTED)
        assert states[place - 1] is JobState.RUNNING or JobEvent.RECALL in events
        assert states[place + 1 :] in ([], [JobState.DONE])


@given(EVENTS)
def test_a_held_job_waits_for_its_operator_unless_it_was_done_before_a_restore(
    events: list[JobEvent],
) -> None:
    states = walk(events)
    ends = {JobState.RECEIVED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}
    if JobEvent.RECALL in events:
        ends.add(JobState.ATTESTED)

    for before, after in pairwise(states):
        if before is JobState.HELD:
            assert after in ends


def test_what_runs_neither_expires_nor_is_held() -> None:
    for event in (JobEvent.EXPIRE, JobEvent.HOLD, JobEvent.ENQUEUE, JobEvent.START):
        assert (JobState.RUNNING, event) not in TRANSITIONS


def test_an_attested_job_can_no_longer_fail() -> None:
    assert {event for state, event in TRANSITIONS if state is JobState.ATTESTED} == {JobEvent.SETTLE}


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[JobState.DONE, JobEvent.RETRY] = JobState.QUEUED  # type: ignore[index]


class Walk(RuleBasedStateMachine):
    """One job through every event that may come, in any order, with the numbers that the ledger keeps beside its state."""

    def __init__(self) -> None:
        super().__init__()
        self.states = [JobState.RECEIVED]
        self.began = self.given_back = self.attested = 0

    @rule(event=st.sampled_from(JobEvent))
    def happens(self, event: JobEvent) -> None:
        before = self.states[-1]
        if (before, event) not in TRANSITIONS:
            with pytest.raises(IllegalMove):
                follow(before, event)
            return
        self.states.append(follow(before, event))
        self.began += event is JobEvent.START
        self.given_back += event is JobEvent.RETRY
        self.attested += event in {JobEvent.ATTEST, JobEvent.RECALL}

    @precondition(lambda self: self.states[-1] in FINAL)
    @rule(event=st.sampled_from(JobEvent))
    def what_ended_stays(self, event: JobEvent) -> None:
        with pytest.raises(IllegalMove):
            follow(self.states[-1], event)

    @invariant()
    def at_most_one_attempt_is_under_way(self) -> None:
        under_way = self.began - self.given_back
        assert under_way in {0, 1}
        if self.states[-1] in {JobState.RECEIVED, JobState.HELD, JobState.QUEUED, JobState.RUNNING}:
            assert under_way == (self.states[-1] is JobState.RUNNING)

    @invariant()
    def it_is_attested_once_and_ends_once(self) -> None:
        assert self.attested <= 1
        assert sum(state in FINAL for state in self.states) <= 1

    @invariant()
    def what_is_done_was_attested_or_went_elsewhere_before_it_began(self) -> None:
        if self.states[-1] is JobState.DONE and self.attested == 0:
            assert self.states[-2] is JobState.RECEIVED
            assert self.began == 0


Walk.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestWalk = Walk.TestCase
