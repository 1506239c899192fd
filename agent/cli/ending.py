"""How a command ends: its exit code, and errors as two lines on standard error."""

import sys
from collections.abc import Callable
from enum import IntEnum

from agent.cli.home import Refused
from agent.errors import AgentError, AgentUnreachable, BadSettings, PeerUnavailable


class ExitCode(IntEnum):
    """What the exit code says."""

    OK = 0
    FAILED = 1  # the thing that was asked for failed, or was refused
    USAGE = 2  # the command line or the settings are wrong
    UNREACHABLE = 3  # the agent does not answer
    NOT_VERIFIED = 4  # a chain, an order or a model does not hold
    NOT_YET = 5  # what was waited for did not come in time; it goes on by itself


def ended(command: Callable[[], object]) -> int:
    """Run the command; its exit code. What it prints goes to the process's own streams."""
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(ExitCode.FAILED if end.code else ExitCode.OK)
    except Refused as refusal:
        _complain(refusal.code, str(refusal), refusal.advice)
        return ExitCode.FAILED
    except AgentError as error:
        _complain(error.code, error.detail, error.advice)
        return _exit_code(error)
    except KeyboardInterrupt:  # before a service listens to signals
        return ExitCode.FAILED
    except BrokenPipeError:  # who read our output has seen enough
        sys.stderr.close()
        return ExitCode.OK
    return ExitCode.OK


def _complain(code: str, detail: str, advice: str) -> None:
    from agent.cli.out import complain  # not before: a service that starts has nothing to print

    complain(code, detail, advice)


def _exit_code(error: AgentError) -> ExitCode:
    match error:
        case BadSettings():
            return ExitCode.USAGE
        case AgentUnreachable() | PeerUnavailable():
            return ExitCode.UNREACHABLE
        case _:
            return ExitCode.FAILED
