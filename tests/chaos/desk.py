"""The orchestrators' staff: sends each order of the plan when its time has come, and again until some agent has it."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.devkit.issuing import send
from agent.domain.ids import KeyId
from agent.domain.orders import SignedOrder
from agent.errors import AgentError
from agent.trust.signed import sign_order
from tests.chaos.plan import Wish
from tests.chaos.stage import Stage
from tests.chaos.town import Town
from tests.checker import Issued

AGAIN_S = 2.0


@dataclass
class Sending:
    """An order that is being sent. `accepted_by`: agents that said so to its orchestrator."""

    wish: Wish
    signed: SignedOrder
    accepted_by: set[KeyId] = field(default_factory=set)


@dataclass
class Desk:
    """Everything that was sent."""

    stage: Stage
    town: Town
    note: Callable[..., None]
    sent: dict[str, Sending] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def begin(self, wishes: tuple[Wish, ...]) -> None:
        """Send these, each at its time from now on, in threads."""
        began = time.monotonic()
        for wish in wishes:
            thread = threading.Thread(target=self._send_in_time, args=(wish, began), daemon=True)
            thread.start()
            self._threads.append(thread)

    def finish(self, within_s: float) -> None:
        """Begin no other order; return when those that were begun have been taken, or the time is over."""
        self._over.set()
        deadline = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def issued(self) -> tuple[Issued, ...]:
        """What was sent, for the checker; who took it is known from the answers that came."""
        return tuple(
            Issued(
                one.signed.envelope,
                accepted_by=frozenset(one.accepted_by),
                model=self.town.expected_model(one.wish),
            )
            for one in list(self.sent.values())
        )

    def _send_in_time(self, wish: Wish, began: float) -> None:
        if self._over.wait(max(0.0, began + wish.at_s - time.monotonic())):
            return
        consortium = self.stage.consortium
        client = consortium.client(consortium.orchestrators[wish.orchestrator])
        book = consortium.book(wish.orchestrator)
        signed = sign_order(self.town.order(wish), client.key)
        book.record_order(signed, client.now())
        sending = self.sent[signed.order.id] = Sending(wish, signed)
        deadline = time.monotonic() + 600
        while not sending.accepted_by and time.monotonic() < deadline:
            try:
                sending.accepted_by.add(send(signed, book, client))
                self.note("order", signed.order.id, number=wish.number)
            except AgentError as error:
                self.note("order not taken", signed.order.id, detail=str(error)[:200])
                time.sleep(AGAIN_S)
