"""`selftest`: hostile code in the real cage of this host, attempt by attempt."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.files import as_owner_of
from agent.cli.here import here_of
from agent.cli.keys import load_key
from agent.cli.out import JsonFlag, clean, print_json, print_table, say
from agent.errors import AgentError, BadSettings

if TYPE_CHECKING:
    from agent.config import Settings
    from agent.ports.runtime import Runtime
    from agent.selftest.suite import Finding

HELD, NOT_HELD, ABSENT = "yes", "NO", "absent"
FAILED = 1


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(selftest)


def selftest(
    context: typer.Context,
    runtime: Annotated[
        str | None, typer.Option("--runtime", metavar="NAME", help="Only this one. Default: every runtime.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only what a worker tries at its start: some seconds.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run hostile code in the real cage of this host, and hold what happened against what must happen.

    Exit code 1 when an attempt succeeded. A ceiling that this host cannot enforce is named `absent`: whether jobs may run
    without it is for `accept_missing` of policy.toml to say.
    """
    from agent.wiring import runtimes

    settings = here_of(context).settings
    known = runtimes(settings, load_key(settings.identity.key).keyid)
    chosen = [one for one in known if runtime in {None, one.name}]
    if not chosen:
        raise BadSettings(
            f"there is no runtime {runtime!r}; this host has {', '.join(one.name for one in known)}"
        )
    with as_owner_of(settings.identity.key):
        findings = [finding for one in chosen for finding in findings_of(one, settings, is_quick=quick)]
    if as_json:
        print_json({"probes": findings})
    else:
        _print(findings)
    if not all(finding.held for finding in findings):
        raise typer.Exit(FAILED)


def findings_of(runtime: "Runtime", settings: "Settings", *, is_quick: bool) -> "list[Finding]":
    """Those of one runtime; a runtime that cannot be tried is a finding too."""
    from agent.selftest.suite import not_tried, probe

    found = []
    try:
        for finding in probe(
            runtime,
            root=settings.workspace.root,
            cache=settings.paths.selftest,
            show=lambda text: clean(text, keeps_lines=True),
            is_quick=is_quick,
        ):
            found.append(finding)
    except AgentError as error:
        found.append(not_tried(runtime, error))
    return found


def _print(findings: "Sequence[Finding]") -> None:
    from agent.selftest.suite import attempt_of, is_named_absent

    def word(finding: "Finding") -> str:
        if not finding.held:
            return NOT_HELD
        return ABSENT if is_named_absent(finding) else HELD

    rows = [
        (one.runtime, one.probe, attempt_of(one), one.expected, one.seen[:200], word(one)) for one in findings
    ]
    columns = ("runtime", "probe", "attempt~", "must happen~", "happened~", "held")
    print_table(columns, rows)
    say()
    for name in dict.fromkeys(one.runtime for one in findings):
        words = [word(one) for one in findings if one.runtime == name]
        say(
            f"{name}: {len(words)} attempts, {words.count(NOT_HELD)} not held, "
            f"{words.count(ABSENT)} against a ceiling that is absent here"
        )
