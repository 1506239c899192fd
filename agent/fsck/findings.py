"""What fsck says: one value for each thing that does not agree, with a code that never changes its meaning."""

from enum import StrEnum

from msgspec import Struct


class Code(StrEnum):
    """What is wrong. docs/operators.md lists them, with what mends each."""

    # the ledger's file
    DAMAGED = "ledger-damaged"
    REFERENCE = "ledger-reference"
    SCHEMA = "ledger-schema"
    BEHIND = "ledger-behind"
    NEWER = "ledger-newer"
    UNREADABLE = "ledger-unreadable"
    RESTORE_INTERRUPTED = "restore-interrupted"
    UNREADABLE_ROW = "row-unreadable"
    # an order and what was signed
    ORDER_UNREADABLE = "order-unreadable"
    ORDER_DIFFERS = "order-differs"
    RECEIPT_UNREADABLE = "receipt-unreadable"
    RECEIPT_DIFFERS = "receipt-differs"
    RECEIPT_LINK = "receipt-link"
    SIGNATURE = "signature-wrong"
    SIGNER_UNKNOWN = "signer-unknown"
    # jobs
    JOB_UNREADABLE = "job-unreadable"
    JOB_DIFFERS = "job-differs"
    ATTEMPTS = "attempts-wrong"
    RUNS_UNCLAIMED = "running-unclaimed"
    LEASE_LEFT = "lease-left"
    PLACE_DONE = "place-done-already"
    TWO_PLACES = "two-open-places"
    RECEIPTS_MISSING = "receipts-missing"
    RECEIPT_MISSING = "own-receipt-missing"
    NOBODY_GOES_ON = "nobody-goes-on"
    UNSETTLED = "unsettled"
    DONE_UNTOLD = "done-but-untold"
    # deliveries
    BODY_MISSING = "body-missing"
    DELIVERY_UNREADABLE = "delivery-unreadable"
    DELIVERY_DIFFERS = "delivery-differs"
    # outside of the ledger
    QUEUES_DAMAGED = "queues-damaged"
    RING_OF_NOTHING = "ring-of-nothing"
    FOLDER_LEFT = "folder-left"
    FOLDER_STRANGE = "folder-strange"
    CONTAINER_LEFT = "container-left"
    CONTAINERS_UNSEEN = "containers-unseen"
    IMAGE_LEFT = "image-left"
    IMAGES_DIFFER = "images-differ"
    FILE_LEFT = "file-left"


class Fix(StrEnum):
    """A mend that loses nothing, so that `--mend` may do it."""

    MIGRATE = "migrate"
    END_LEASE = "end-lease"  # of a job: the next worker takes it over
    DROP_LEASE = "drop-lease"
    SETTLE = "settle"
    DROP_RING = "drop-ring"
    QUEUES_ASIDE = "queues-aside"  # only while no service runs
    REMOVE_FOLDER = "remove-folder"
    REMOVE_CONTAINER = "remove-container"
    CLEAR_IMAGES = "clear-images"
    REMOVE_FILE = "remove-file"  # only while no service runs


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that does not agree. `mend`: what a person does, or what `--mend` would; `fix` with `target` when it may."""

    code: Code
    where: str
    seen: str
    mend: str
    fix: Fix | None = None
    target: str = ""


DECIDE = "a person decides: keep a copy, and compare with the orchestrator (`dc-compute orders`)"
RESTORE = "restore a backup: `dc-compute restore FILE`; without one, ask the orchestrator what it knows of the order"
BY_ITSELF = "`dc-compute fsck --mend`"
