"""A plan that fails, made smaller: as few faults and orders as still fail in the same way. Delta debugging, as Zeller wrote it.

Source: A. Zeller, R. Hildebrandt, "Simplifying and isolating failure-inducing input", 2002: ddmin.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from tests.simulate.plan import Fault, OrderPlan, Plan

T = TypeVar("T")

Fails = Callable[[Plan], bool]


def shrink(plan: Plan, fails: Fails, *, most_runs: int = 400) -> Plan:
    """The smallest plan found that still fails; `plan` itself does. Datasets and hosts keep their numbers."""
    left = [most_runs]

    def still_fails(candidate: Plan) -> bool:
        left[0] -= 1
        return left[0] >= 0 and fails(candidate)

    def with_faults(faults: Sequence[Fault]) -> bool:
        return still_fails(replace(plan, faults=tuple(faults)))

    def with_orders(orders: Sequence[OrderPlan]) -> bool:
        return still_fails(replace(plan, orders=tuple(orders)))

    while left[0] > 0:
        before = plan
        plan = replace(plan, orders=tuple(fewest(plan.orders, with_orders)))
        plan = replace(plan, faults=tuple(fewest(plan.faults, with_faults)))
        if plan == before:
            break
    return plan


def fewest(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> Sequence[T]:
    """A subsequence of `items` that fails, and of which no part can be left out, as far as `fails` was asked."""
    parts = 2
    while items:
        size = max(1, len(items) // parts)
        for start in range(0, len(items), size):
            fewer = [*items[:start], *items[start + size :]]
            if fails(fewer):
                items, parts = fewer, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(items))
    return items
