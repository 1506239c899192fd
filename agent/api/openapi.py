"""/openapi.json (OpenAPI 3.1), made from the table of routes and from the very types that parse and write the bodies."""

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from msgspec import Struct

from agent import __version__, errors
from agent.api.events import DoingView, EndedView, EventView
from agent.api.problems import PROBLEM_TYPE, Problem
from agent.api.signed_requests import JSON_TYPE
from agent.api.table import Row, Who
from agent.domain.cancellations import Cancellation
from agent.domain.orders import Learnuplet, Preduplet
from agent.domain.receipts import Statement
from agent.errors import AgentError
from agent.trust.http_signatures import BODY_COMPONENTS, REQUEST_COMPONENTS, REQUEST_PARAMETERS

REFERENCE = "#/components/schemas/{name}"
UUID = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
DIGEST = r"^sha256:[0-9a-f]{64}$"
PATH_PARAMETERS = {"id": ("The order's id.", UUID), "digest": ("The digest of an image's archive.", DIGEST)}

PAYLOADS: tuple[type[Struct], ...] = (
    Learnuplet,
    Preduplet,
    Cancellation,
    Statement,
)  # what the envelopes of the bodies hold

EVENTS: tuple[type[Struct], ...] = (EventView, DoingView, EndedView)  # what the data of streams hold

# Which errors a route may answer with, by what it does; the rest follows from the classes.
ALWAYS: tuple[type[AgentError], ...] = (AgentError,)
SIGNED = (
    errors.UnsignedRequest,
    errors.BadRequestSignature,
    errors.StaleRequest,
    errors.ReplayedRequest,
    errors.UnknownKey,
    errors.KeyNotValid,
    errors.WrongRole,
    errors.DigestMismatch,
    errors.TooLarge,
    errors.WrongMediaType,
    errors.LedgerUnavailable,
    errors.LedgerFull,
)
STREAMING = (errors.TooManyStreams, errors.Draining)
READING = (errors.BadQuery, errors.NotFound, errors.NotYours)
INTAKE = (
    errors.BadQuery,
    errors.BadJson,
    errors.BadEnvelope,
    errors.BadSignature,
    errors.UnknownPayloadType,
    errors.BadOrder,
    errors.NotYours,
    errors.OrderConflict,
    errors.OrderExpired,
    errors.OrderNotYetValid,
    errors.PolicyRefused,
    errors.ImageDenied,
    errors.Draining,
    errors.QueueFull,
    errors.NoSpace,
)
CANCELLING = (
    errors.BadQuery,
    errors.BadJson,
    errors.BadEnvelope,
    errors.BadSignature,
    errors.UnknownPayloadType,
    errors.BadOrder,
    errors.NotYours,
    errors.CancellationNotYetValid,
    errors.QueueFull,
)
RULING = (
    errors.BadQuery,
    errors.BadJson,
    errors.BadOrder,
    errors.NotFound,
    errors.NotYours,
    errors.HostRestored,
    errors.DeliveryOver,
)
HANDOFF = (
    errors.HandoffSender,
    errors.HandoffConflict,
    errors.ReceiptRefused,
    errors.BrokenLink,
    errors.DatasetNotHere,
    errors.StorageUnavailable,
    errors.DatasetMissing,
    errors.BadAnswer,
)


def openapi_document(table: Sequence[Row]) -> bytes:
    """The description of these routes, as JSON bytes."""
    return msgspec.json.encode(describe(table))


def describe(table: Sequence[Row]) -> dict[str, Any]:
    """The description of these routes."""
    schemas, components = _schemas(table)
    paths: dict[str, dict[str, Any]] = {}
    for row in table:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dc-compute",
            "version": __version__,
            "summary": "The compute agent of a storage node.",
            "description": (
                "Takes signed orders and hand-offs, tells how they stand. Bodies are DSSE envelopes; what their payloads "
                f"hold is described by {', '.join(kind.__name__ for kind in PAYLOADS)} below. Every error is a Problem."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"rfc9421": _signature_scheme()}},
    }


def errors_of(row: Row) -> tuple[type[AgentError], ...]:
    """The errors that this route may answer with."""
    may = ALWAYS
    if row.is_signed:
        may += SIGNED
    if row.takes is not None:
        may += {Who.OPERATOR: RULING, Who.CANCELLERS: CANCELLING}.get(row.who, INTAKE)
    elif row.is_signed:
        may += READING
    if row.who is Who.AGENTS:
        may += HANDOFF
    if row.is_stream:
        may += STREAMING
    return may


def _schemas(table: Sequence[Row]) -> tuple[dict[type, dict[str, Any]], dict[str, Any]]:
    """The schema of each type that stands in a body, and the components they share."""
    kinds: list[type] = [Problem, *PAYLOADS, *EVENTS]
    for row in table:
        kinds += [kind for kind in (row.takes, *row.gives.values()) if kind is not None and kind not in kinds]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=REFERENCE)
    return dict(zip(kinds, schemas, strict=True)), components


def _operation(row: Row, schemas: dict[type, dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": row.handle.__name__,
        "summary": (row.handle.__doc__ or "").strip().splitlines()[0],
        "description": f"For {row.who.words}.",
        "security": [{"rfc9421": []}] if row.is_signed else [],
        "responses": {**_successes(row, schemas), **_refusals(row, schemas)},
    }
    parameters = [*_path_parameters(row.path), *_query_parameters(row.query)]
    if parameters:
        operation["parameters"] = parameters
    if row.takes is not None:
        operation["description"] += f" At most {row.limit_bytes} bytes."
        operation["requestBody"] = {"required": True, "content": {JSON_TYPE: {"schema": schemas[row.takes]}}}
    return operation


def _successes(row: Row, schemas: dict[type, dict[str, Any]]) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for status, kind in row.gives.items():
        media_type = row.media_type or ("text/plain" if kind is str else JSON_TYPE)
        answers[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {media_type: {"schema": schemas[kind]}},
        }
        if row.takes is not None and row.who is not Who.OPERATOR:
            answers[str(status)]["headers"] = {
                "Location": {"schema": {"type": "string"}, "description": "The order."}
            }
    return answers


def _refusals(row: Row, schemas: dict[type, dict[str, Any]]) -> dict[str, Any]:
    by_status: dict[int, list[str]] = {}
    for error in errors_of(row):
        by_status.setdefault(error.status, []).append(error.code)
    return {
        str(status): {
            "description": ", ".join(codes),
            "content": {PROBLEM_TYPE: {"schema": schemas[Problem]}},
        }
        for status, codes in sorted(by_status.items())
        if status not in row.gives
    }


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": words,
            "schema": {"type": "string", "pattern": pattern},
        }
        for name, (words, pattern) in PATH_PARAMETERS.items()
        if f"{{{name}}}" in path
    ]


def _query_parameters(query: type[Struct] | None) -> Iterable[dict[str, Any]]:
    if query is None:
        return
    (_,), components = msgspec.json.schema_components((query,), ref_template="{name}")
    own = components[query.__name__]
    for name, schema in own["properties"].items():
        yield {"name": name, "in": "query", "required": False, "schema": _inlined(schema, components)}


def _inlined(schema: Any, components: dict[str, Any]) -> Any:
    """The schema with what it refers to in place, and without a default that is only "absent"."""
    if isinstance(schema, list):
        return [_inlined(part, components) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(components[schema["$ref"]], components)
    kept = {
        name: _inlined(part, components) for name, part in schema.items() if name not in {"default", "title"}
    }
    choices = [part for part in kept.get("anyOf", []) if part != {"type": "null"}]
    if len(choices) == 1:
        return choices[0]
    return kept


def _signature_scheme() -> dict[str, Any]:
    return {
        "type": "apiKey",
        "in": "header",
        "name": "Signature",
        "description": (
            "RFC 9421 with Signature-Input beside it, Ed25519, by a key of the roster. Covered: "
            f"{' '.join(REQUEST_COMPONENTS)}, with a body also {' '.join(BODY_COMPONENTS)}; parameters: "
            f"{' '.join(sorted(REQUEST_PARAMETERS))}. On the operator's Unix socket nothing is signed."
        ),
    }
