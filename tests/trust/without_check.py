"""A pytest plugin that takes one numbered check of `verify_handoff` out, named by CHECK in the environment.

Only `test_checks_are_needed.py` loads it, in a process of its own.
"""

import os
from typing import Any

from agent.domain.orders import MAX_ORDER_BYTES, SignedOrder, parse_order
from agent.domain.receipts import MAX_RECEIPT_BYTES, SignedReceipt, parse_receipt
from agent.trust import handoff
from agent.trust.envelope import parse_envelope
from agent.trust.policy import HostPolicy


def _nothing(*_args: Any, **_named: Any) -> None:
    return None


def _order_as_told(envelope: bytes, *_args: Any, **_named: Any) -> SignedOrder:
    told = parse_envelope(envelope, limit_bytes=MAX_ORDER_BYTES)
    return SignedOrder(parse_order(told.payload_type, told.payload), told.digest, told.keyid, envelope)


def _receipt_as_told(envelope: bytes, *_args: Any) -> SignedReceipt:
    told = parse_envelope(envelope, limit_bytes=MAX_RECEIPT_BYTES)
    return SignedReceipt(parse_receipt(told.payload), told.digest, told.keyid, envelope)


WITHOUT: dict[str, dict[Any, dict[str, Any]]] = {
    "0": {handoff: {"_check_sender": _nothing}},
    "1": {handoff: {"open_order": _order_as_told}},
    "2": {handoff: {"_find_repeat": _nothing}},
    "3": {handoff: {"_check_time": _nothing}},
    "4": {HostPolicy: {"admit_or_hold": _nothing}},
    "5": {handoff: {"open_receipt": _receipt_as_told, "check_place": _nothing, "check_holder": _nothing}},
    "6": {handoff: {"_check_links": _nothing}},
    "7": {handoff: {"_check_lies_here": _nothing}},
}

for _where, _changes in WITHOUT[os.environ["CHECK"]].items():
    for _name, _stand_in in _changes.items():
        if not hasattr(_where, _name):
            raise AttributeError(f"{_where} has no {_name}: this plugin is behind the code")
        setattr(_where, _name, _stand_in)
