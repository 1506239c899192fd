"""Moments and rests as HTTP writes them. Source: RFC 9110, 5.6.7 and 10.2.3."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def moment(text: str) -> datetime | None:
    """A moment, to the second; None when it is none."""
    try:
        told = parsedate_to_datetime(text)
        return told.replace(tzinfo=UTC) if told.tzinfo is None else told.astimezone(UTC)
    except (ValueError, OverflowError):  # OverflowError: after the last day of all
        return None


def rest_asked(retry_after: str | None, now: datetime) -> float | None:
    """The seconds of a Retry-After, which may be a moment. Whoever rests bounds them."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    until = moment(text)
    return None if until is None else max(0.0, (until - now).total_seconds())
