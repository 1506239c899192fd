"""Every error this agent raises, in four families by whose fault it is. No logic lives here.

    AgentError
    ├── OrderError      what was asked is wrong: the sender mends it                    4xx, never retried
    ├── TrustError      who asked, or what proves it, is not accepted                   401/403, never retried
    ├── JobError        the guest's code or what it left is wrong                       never retried
    └── OutsideError    storage, an orchestrator, a peer or this host could not         503, retried unless the class says no

`code` is stable and has a section of its own in docs/errors.md; `status` is the HTTP status; `is_retried` is the retry rule,
`most_retries` its limit, `is_passing` says that it spends no attempt; `advice` says what to do. The message says what was seen.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar


class AgentError(Exception):
    """The root: `str(error)` says what happened, `error.advice` what to do about it."""

    code: ClassVar[str] = "agent-error"
    status: ClassVar[int] = 500
    is_retried: ClassVar[bool] = False
    is_passing: ClassVar[bool] = (
        False  # somebody on the network is away: waited for while the order lives, no attempt spent
    )
    most_retries: ClassVar[int | None] = None  # over all attempts of a task; None: as many as it has attempts
    advice: ClassVar[str] = "Report this to the maintainers with the log of events."

    about: Mapping[str, str | int] = MappingProxyType(
        {}
    )  # what it was about, for the audit log, where that is known

    @property
    def detail(self) -> str:
        """What was seen, as one sentence for a person."""
        return str(self) or self.code


# ------------------------------------------------------------------ OrderError: what was asked is wrong


class OrderError(AgentError):
    code = "order-error"
    status = 422
    advice = "Correct the order or the call; sending the same bytes again gives the same answer."


class BadJson(OrderError):
    code = "bad-json"
    status = 400
    advice = "Send strict JSON in UTF-8: no duplicate keys, no NaN, no nesting over 32."


class BadOrder(OrderError):
    code = "bad-order"
    advice = "Compare the order with the contract of orders (docs/contracts/chain.md)."


class BadHttp(OrderError):
    code = "bad-http"
    status = 400
    advice = "Send HTTP/1.1 with a well-formed head of at most 64 KiB; look at what stands in between."


class BadQuery(OrderError):
    code = "bad-query"
    status = 400
    advice = "Compare the call with /openapi.json."


class TooLarge(OrderError):
    code = "too-large"
    status = 413
    advice = "Stay under the limit that the message names."


class WrongMediaType(OrderError):
    code = "wrong-media-type"
    status = 415
    advice = "Send application/json (or the media type that /openapi.json names)."


class NotFound(OrderError):
    code = "not-found"
    status = 404
    advice = "Check the identifier; an agent only knows orders that reached it."


class MethodNotAllowed(OrderError):
    code = "method-not-allowed"
    status = 405
    advice = "Use the methods that /openapi.json lists for this path."


class OrderConflict(OrderError):
    code = "order-conflict"
    status = 409
    advice = "An order id is used once: give the changed order a new id."


class BadReport(OrderError):
    code = "bad-report"
    advice = "Compare the report, the result or the announcement with docs/contracts/http.md."


class RecordConflict(OrderError):
    code = "record-conflict"
    status = 409
    advice = "Something else is recorded under this name and stays: use another name, or ask whose it is."


class DeliveryOver(OrderError):
    code = "delivery-over"
    status = 409
    advice = (
        "Look with `dc-compute deliveries list`; issue the order anew where a hand-off cannot be sent again."
    )


class OrderExpired(OrderError):
    code = "order-expired"
    advice = "Issue the order anew with a later `expires`; check the clocks when it looks wrong."


class OrderNotYetValid(OrderError):
    code = "order-not-yet-valid"
    status = 425  # passes by itself: a sender whose clock is a little ahead sends it again
    advice = "Send it after its `not_before`; check the clocks when it looks wrong."


class BadBackup(OrderError):
    code = "bad-backup"
    advice = "Take another backup: nothing was changed."


class CancellationNotYetValid(OrderError):
    code = "cancellation-not-yet-valid"
    status = 425  # as an order: passes by itself
    advice = "Its `issued` lies in the future: compare both clocks and send it again."


class HostRestored(OrderError):
    code = "host-restored"
    status = 409
    advice = "Wait until the orchestrators were asked, which ends it by itself; --force goes on without their word."


class BadSettings(OrderError):
    code = "bad-settings"
    advice = "Mend the file or the flag that the message names."


# ------------------------------------------------------------------ TrustError: who asked is not accepted


class TrustError(AgentError):
    code = "trust-error"
    status = 403
    advice = "Check the roster on both sides: `dc-compute peers list`."


class BadEnvelope(TrustError):
    code = "bad-envelope"
    status = 400
    advice = "Send one DSSE envelope with exactly one Ed25519 signature."


class BadSignature(TrustError):
    code = "bad-signature"
    status = 401
    advice = "The bytes were altered or signed with another key: sign the exact payload bytes again."


class UnknownKey(TrustError):
    code = "unknown-key"
    status = 401
    advice = "Add the key to the roster with `dc-compute peers add` after comparing fingerprints."


class WrongRole(TrustError):
    code = "wrong-role"
    advice = "Each payload type admits one role: sign with a key of that role."


class KeyNotValid(TrustError):
    code = "key-not-valid"
    advice = "The key is revoked or outside its dates: sync the roster or rotate the key."


class UnknownPayloadType(TrustError):
    code = "unknown-payload-type"
    status = 422
    advice = "Use a payload type and version that the contracts name."


class StaleRoster(TrustError):
    code = "stale-roster"
    advice = "The roster offered is older than the one in use: let the orchestrator fetch the newest and sync again."


class UnsignedRequest(TrustError):
    code = "unsigned-request"
    status = 401
    advice = "Sign the request as docs/contracts/chain.md says (RFC 9421, tag dc-compute-v1)."


class BadRequestSignature(TrustError):
    code = "bad-request-signature"
    status = 401
    advice = "Cover every required component and sign the request as it is sent."


class StaleRequest(TrustError):
    code = "stale-request"
    status = 401
    advice = "Compare both clocks; a signature lives 120 seconds at most."


class ReplayedRequest(TrustError):
    code = "replayed-request"
    status = 401
    advice = "Sign each request afresh with a new nonce."


class DigestMismatch(TrustError):
    code = "digest-mismatch"
    status = 400
    is_retried = True  # a download may have broken; the attempts are counted
    advice = "The body is not the one that was announced: send it again."


class BadAnswer(TrustError):
    code = "bad-answer"
    status = 502
    is_retried = True  # whoever answered was not the one we asked: the right one may answer next time
    is_passing = True
    advice = "The other side's answer is not signed as the contract asks: check its version and its key."


class PolicyRefused(TrustError):
    code = "policy-refused"
    advice = "The host's operator decides what runs: ask for the entry that the message names in policy.toml."


class ImageDenied(PolicyRefused):
    code = "image-denied"
    advice = "The host's operator looked at the named image and said no: ask them why, or issue the order with another."


class HandoffSender(TrustError):
    code = "handoff-sender"
    advice = "At position 0 any rostered agent may send; later only the signer of the last receipt."


class HandoffConflict(TrustError):
    code = "handoff-conflict"
    status = 409
    advice = "Another last receipt is recorded for this place: the orchestrator must say which one holds."


class ReceiptRefused(TrustError):
    code = "receipt-refused"
    advice = "Each receipt must be a done one, for this order and place, by an agent that holds that dataset."


class BrokenLink(TrustError):
    code = "broken-link"
    advice = "Receipts must link to the order and to each other, and each model to the one before."


class BrokenLog(TrustError):
    code = "broken-log"
    advice = "Somebody wrote in the ledger's file or in this export: keep it as it is, and compare with an earlier export."


class LogTruncated(TrustError):
    code = "log-truncated"
    advice = (
        "Lines that were there are not: keep the file as it is, and ask the operator for the older ledger."
    )


class LogRestored(TrustError):
    code = "log-restored"
    advice = "A backup took the place of the ledger, as the log itself tells: ask the operator for the file it replaced."


class DatasetNotHere(TrustError):
    code = "dataset-not-here"
    advice = "Ask storage again where the next dataset lies and send the hand-off there."


class BadSeal(TrustError):
    code = "bad-seal"
    advice = "The sealed dataset was altered or cut: let the owner upload it again."


class BadShare(TrustError):
    code = "bad-share"
    advice = "The named orchestrator's share does not match its commitment in the header: mend it there."


class ShareRefused(TrustError):
    code = "share-refused"
    advice = "The owner's header and the order decide who opens a dataset, when and for what: the message names the rule."


class NotYours(TrustError):
    code = "not-yours"
    advice = "An order can be read by its orchestrator, the agents of its chain and the operator."


# ------------------------------------------------------------------ JobError: the guest's code is wrong


class JobError(AgentError):
    code = "job-error"
    advice = "The algorithm's author mends the image; the operator can read `dc-compute log`."

    @property
    def reason(self) -> str:
        """The cause in the words of the container contract, as reports and receipts carry it."""
        return self.code


class JobFailed(JobError):
    """A run ended with anything but success; `cause` is one of the container contract's words."""

    code = "job-failed"

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause

    @property
    def reason(self) -> str:
        return self.cause


class BadOutput(JobError):
    """`seen` is in words of the guest's own, a file's name perhaps, which may carry data: no message holds them."""

    code = "bad-output"
    advice = "Leave only regular files and folders within the caps of the container contract; dc-compute log shows which."

    def __init__(self, message: str, seen: str = "") -> None:
        super().__init__(message)
        self.seen = seen

    @property
    def reason(self) -> str:
        return "output"


class BadBuild(JobError):
    code = "bad-build"
    advice = "Mend the Dockerfile or its context; docs/algorithms.md says what this host builds with."


class BadImage(JobError):
    code = "bad-image"
    advice = "Save the image as an OCI archive again; the message names the entry that is refused."

    @property
    def reason(self) -> str:
        return "image"


# ------------------------------------------------------------------ OutsideError: somebody or something could not


class OutsideError(AgentError):
    """`rest_s`: how long the other side asked to be let alone (its Retry-After), in seconds."""

    code = "outside-error"
    rest_s: float | None = None
    status = 503
    is_retried = True
    advice = "It is tried again by itself; look at the named service when it stays."


class StorageUnavailable(OutsideError):
    code = "storage-unavailable"
    is_passing = True
    advice = "Check that the storage answers at its roster address; it is tried again by itself."


class BlobMissing(OutsideError):
    code = "blob-missing"
    advice = "Upload the named blob to a storage of the consortium; it is tried again by itself."


class DatasetMissing(OutsideError):
    code = "dataset-missing"
    advice = "Storage names no place for this dataset and version: upload it or correct the order."


class OrchestratorUnavailable(OutsideError):
    code = "orchestrator-unavailable"
    is_passing = True
    advice = "Check that the orchestrator answers at its roster address; it is tried again by itself."


class ShareWithheld(OutsideError):
    code = "share-withheld"
    is_retried = False
    advice = "Ask the named orchestrator why it keeps its share; without all shares the dataset stays closed."


class PeerUnavailable(OutsideError):
    code = "peer-unavailable"
    is_passing = True
    advice = "Check that the peer answers at its roster address; the hand-off is sent again by itself."


class PeerRefused(OutsideError):
    """The other side refused for good; `refusal` is its own code, `evidence` its signed answer (SignedRefusal as JSON)."""

    code = "peer-refused"
    is_retried = False
    advice = "Read the peer's code and mend what it names; the orchestrator was told."

    def __init__(self, message: str, refusal: str = "unknown", evidence: bytes = b"") -> None:
        super().__init__(message)
        self.refusal = refusal
        self.evidence = evidence


class RuntimeUnavailable(OutsideError):
    code = "runtime-unavailable"
    advice = "Start the container service: `systemctl --user start dc-compute-podman` as the agent's user."


class ContainerLost(OutsideError):
    code = "container-lost"
    advice = "Look at what killed the container or the container service; the attempts are counted, the next begins by itself."


class WorkerLost(OutsideError):
    code = "worker-lost"
    advice = "Look at why the worker or the host went down; the attempts are counted, and the next one begins by itself."


class CageNotApplied(OutsideError):
    code = "cage-not-applied"
    is_retried = False
    advice = (
        "This host cannot hold the named part of the cage: mend it, or let the policy accept its absence."
    )


class CageNotMade(CageNotApplied):
    """The engine made or started no container. It may be the host's fault, or that of whoever killed something meanwhile."""

    code = "cage-not-made"
    is_retried = True
    most_retries: ClassVar[int | None] = 1
    advice = "It is tried once more by itself. When it fails again, `dc-compute doctor` and `dc-compute selftest` say why."


class NoSpace(OutsideError):
    code = "no-space"
    status = 507
    most_retries: ClassVar[int | None] = (
        1  # garbage is collected before it; what is still full after that is for a person to mend
    )
    advice = "Free space on the file system that the message names; what is refused now may be sent again."


class RoomTaken(NoSpace):
    """There is room for it once others have ended: to wait is enough, nothing needs to be mended."""

    code = "room-taken"
    is_passing = True
    advice = "It is tried again by itself. Give the workspace more memory, or let fewer tasks run at once ([workers])."


class WorkspaceOnDisk(OutsideError):
    code = "workspace-on-disk"
    is_retried = False
    advice = "Run the command that the message ends with as root, or let [workspace] root name a folder on a tmpfs."


class SlowBody(OutsideError):
    code = "slow-body"
    status = 408
    advice = "Send it again; look at the line between both when it stays."


class QueueFull(OutsideError):
    code = "queue-full"
    status = 429
    advice = "Send it again after the seconds in Retry-After."


class Draining(OutsideError):
    code = "draining"
    advice = "The host's operator empties it for a while: send it again after the seconds in Retry-After."


class AgentUnreachable(OutsideError):
    code = "agent-unreachable"
    is_retried = False
    advice = "Start it (`dc-compute serve`, or `systemctl start dc-compute.target`) and check --home."


class LedgerUnavailable(OutsideError):
    code = "ledger-unavailable"
    advice = "Check the disk that holds the ledger; nothing was accepted meanwhile."


class LedgerFull(LedgerUnavailable):
    code = "ledger-full"
    status = 507
    advice = "Free space on the file system that the message names (`dc-compute df`, `dc-compute gc`); nothing is lost."


class LedgerInUse(OutsideError):
    code = "ledger-in-use"
    is_retried = False
    advice = "Stop the agent's services first: `systemctl stop dc-compute.target`."


class JustRestored(OutsideError):
    code = "just-restored"
    advice = "Sign the request anew and send it again after the seconds in Retry-After."


class LostRace(OutsideError):
    """Another worker moved the job first. Harmless: the caller stops and lets the other one go on."""

    code = "lost-race"
    status = 409
    is_retried = False
    advice = "Nothing to do: another worker has this job."
