"""`python -m agent.devkit`: run a storage or an orchestrator, and do an orchestrator's desk work beside it.

storage      --config FILE                        serve a storage
orchestrator --config FILE                        serve an orchestrator
issue        --config FILE ORDER.json [--to K]    sign a learnuplet or preduplet and send it
send         --config FILE ORDER-ID [--to K]      send a recorded order again
cancel       --config FILE ORDER-ID [--to K]      sign a cancellation and send it to who has the order
orders       --config FILE [ORDER-ID]             how orders stand, as JSON
result       --config FILE ORDER-ID               an order's result as its last agent told it
wait         --config FILE ORDER-ID               the same, once the order has ended
keep-share   --config FILE DATASET VERSION SHARE  keep the share in this file (32 bytes, or base64 of them)
withhold     --config FILE DATASET REASON         give out no share of a dataset any more
release      --config FILE DATASET                give them out again
releases, alarms  --config FILE                   what went out; what a person must look at
"""

import argparse
import base64
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.devkit.issuing import cancel, issue, send_again
from agent.devkit.server import open_book, open_client, run_orchestrator, run_storage
from agent.devkit.settings import ServerSettings, read_settings
from agent.devkit.waiting import NeverSeen, wait_for
from agent.domain.ids import parse_keyid
from agent.domain.orders import MAX_ORDER_BYTES, DatasetRef, Learnuplet, Order, Preduplet
from agent.domain.standings import OrderState
from agent.domain.strict_json import decode, encode, parse
from agent.errors import AgentError, BadSettings, NotFound
from agent.log import LogLevel, configure
from agent.process import keep_memory_private

WAIT_S = 6 * 3600.0

Command = Callable[[ServerSettings, argparse.Namespace], object]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. What it gives is printed as one JSON document."""
    told = _parser().parse_args(arguments)
    configure(LogLevel.INFO)
    try:
        value = _COMMANDS[told.command](read_settings(told.config), told)
    except AgentError as error:
        print(f"{error.code}: {error.detail}\n{error.advice}", file=sys.stderr)
        return 1
    if value is not None:
        print(encode(value).decode("utf-8"))
    return 0


def _storage(settings: ServerSettings, _: argparse.Namespace) -> object:
    run_storage(settings)
    return None


def _orchestrator(settings: ServerSettings, _: argparse.Namespace) -> object:
    run_orchestrator(settings)
    return None


def _issue(settings: ServerSettings, told: argparse.Namespace) -> object:
    order = _read_order(told.order)
    to = None if told.to is None else parse_keyid(told.to)
    signed = issue(order, open_book(settings), open_client(settings), to=to)
    return {"id": signed.order.id, "digest": signed.digest}


def _send(settings: ServerSettings, told: argparse.Namespace) -> object:
    to = None if told.to is None else parse_keyid(told.to)
    return {"id": told.id, "agent": send_again(told.id, open_book(settings), open_client(settings), to=to)}


def _cancel(settings: ServerSettings, told: argparse.Namespace) -> object:
    to = None if told.to is None else parse_keyid(told.to)
    return {"id": told.id, "agent": cancel(told.id, open_book(settings), open_client(settings), to=to)}


def _orders(settings: ServerSettings, told: argparse.Namespace) -> object:
    book = open_book(settings)
    if told.id is None:
        return tuple(reversed(book.orders()))  # newest first
    order = book.order(told.id)
    if order is None:
        raise NotFound(f"no order {told.id} was issued here")
    return order


def _result(settings: ServerSettings, told: argparse.Namespace) -> object:
    body = open_book(settings).result(told.id)
    if body is None:
        raise NotFound(f"order {told.id} has no result here")
    return parse(body, limit_bytes=len(body), what="the result")


def _wait(settings: ServerSettings, told: argparse.Namespace) -> object:
    book = open_book(settings)

    def has_ended() -> bool:
        order = book.order(told.id)
        if order is None:
            raise NotFound(f"no order {told.id} was issued here")
        is_told = book.result(told.id) is not None and len(book.receipts(told.id)) == order.tasks
        return order.state is not OrderState.OPEN and (is_told or order.state is not OrderState.DONE)

    try:
        wait_for(has_ended, f"the end of order {told.id}", timeout_s=WAIT_S)
    except NeverSeen as cause:
        raise NotFound(str(cause)) from cause
    ended = book.order(told.id)
    if ended is not None and ended.state is not OrderState.DONE:
        raise NotFound(
            f"order {told.id} has no result: it is {ended.state} ({ended.reason or 'no reason told'})"
        )
    return _result(settings, told)


def _keep_share(settings: ServerSettings, told: argparse.Namespace) -> object:
    open_book(settings).keep_share(DatasetRef(told.dataset, told.version), _read_share(told.share))
    return None


def _withhold(settings: ServerSettings, told: argparse.Namespace) -> object:
    open_book(settings).withhold(told.dataset, told.reason)
    return None


def _release(settings: ServerSettings, told: argparse.Namespace) -> object:
    open_book(settings).withhold(told.dataset, None)
    return None


def _releases(settings: ServerSettings, _: argparse.Namespace) -> object:
    return open_book(settings).releases()


def _alarms(settings: ServerSettings, _: argparse.Namespace) -> object:
    return open_book(settings).alarms()


_COMMANDS: dict[str, Command] = {
    "storage": _storage,
    "orchestrator": _orchestrator,
    "issue": _issue,
    "send": _send,
    "cancel": _cancel,
    "orders": _orders,
    "result": _result,
    "wait": _wait,
    "keep-share": _keep_share,
    "withhold": _withhold,
    "release": _release,
    "releases": _releases,
    "alarms": _alarms,
}

_POSITIONALS: dict[str, dict[str, Callable[[str], object]]] = {
    "issue": {"order": Path},
    "send": {"id": str},
    "cancel": {"id": str},
    "result": {"id": str},
    "wait": {"id": str},
    "keep-share": {"dataset": str, "version": str, "share": Path},
    "withhold": {"dataset": str, "reason": str},
    "release": {"dataset": str},
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m agent.devkit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in _COMMANDS:
        command = commands.add_parser(name)
        command.add_argument("--config", type=Path, required=True)
        for positional, kind in _POSITIONALS.get(name, {}).items():
            command.add_argument(positional, type=kind)
        if name == "orders":
            command.add_argument("id", nargs="?")
        if name in {"issue", "send", "cancel"}:
            command.add_argument("--to", metavar="KEYID")
    return parser


def _read_order(path: Path) -> Order:
    """The order in this file: a preduplet when it has `data`, else a learnuplet. Raises: BadSettings, BadOrder."""
    data = _read(path)
    tree = parse(data, limit_bytes=MAX_ORDER_BYTES, what="the order")
    kind: type[Learnuplet] | type[Preduplet] = (
        Preduplet if isinstance(tree, dict) and "data" in tree else Learnuplet
    )
    return decode(data, kind, limit_bytes=MAX_ORDER_BYTES, what="the order")


def _read_share(path: Path) -> bytes:
    data = _read(path)
    if len(data) == 32:
        return data
    try:
        share = base64.b64decode(data.strip(), validate=True)
    except ValueError as cause:
        raise BadSettings(f"{path} holds no share") from cause
    if len(share) != 32:
        raise BadSettings(f"{path} holds {len(share)} bytes, a share has 32")
    return share


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as cause:
        raise BadSettings(f"cannot read {path}: {cause.strerror}") from cause


if __name__ == "__main__":
    keep_memory_private()
    sys.exit(main())
