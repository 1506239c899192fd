"""What the operator's route on the services of this agent tells: what each runs with, and how its last reload went."""

from msgspec import Struct
from starlette.responses import Response

from agent.api.ask import Ask, no_query
from agent.api.desk import Desk
from agent.api.problems import json_answer
from agent.pipeline.services import Service, running


class ServicesView(Struct, frozen=True):
    """Every service of this agent that runs."""

    services: tuple[Service, ...]


def get_services(ask: Ask, desk: Desk) -> Response:
    """Every service that runs, with its settings and its reloads."""
    no_query(ask)
    folder = desk.host.rules.services
    return json_answer(ServicesView(() if folder is None else running(folder)))
