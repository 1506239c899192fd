"""`serve`, `work`, `run` on the command line; what they do is in `services.py`."""

import typer

from agent.cli import services
from agent.cli.here import SetOption, here_of


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(serve)
    app.command()(work)
    app.command()(run)


def serve(context: typer.Context, told: SetOption = None) -> None:
    """Serve the API: HTTPS for orchestrators and agents, a Unix socket for the operator."""
    services.serve(here_of(context, told))


def work(context: typer.Context, told: SetOption = None) -> None:
    """Take jobs from the queues and run them. Several on one host share its ledger and queues."""
    services.work(here_of(context, told))


def run(context: typer.Context, told: SetOption = None) -> None:
    """Both in one command, for small hosts: two processes. When one ends, so does the other; SIGHUP goes to both."""
    services.run(here_of(context, told))
