"""Fingerprints: a key id as people read it to each other over the telephone.

Ten groups of five digits. Digits, because consortia speak several languages and every one of them reads digits; groups of
five, because that is what people keep in mind from hearing to writing. Of each group four digits are the key's and the fifth
checks them by the Damm algorithm, begun with the group's place: one wrong digit, two that changed places and two groups that
did are all found, and the group is named, before anybody compares.

What is compared are 40 decimal digits of the key id, 132 bits: who wants another key with this fingerprint tries 2^132 keys.
The key id itself has 256 bits, and counts everywhere else.
"""

import hmac
import re
from typing import Final

from agent.domain.ids import KeyId
from agent.errors import WrongFingerprint

GROUPS: Final = 10
DIGITS: Final = 4  # of the key, in each group; one more checks them

# A totally anti-symmetric quasigroup of order 10. Source: H. Michael Damm, dissertation, Marburg 2004, page 111.
_DAMM: Final = (
    (0, 3, 1, 7, 5, 9, 8, 6, 4, 2),
    (7, 0, 9, 2, 1, 5, 4, 8, 6, 3),
    (4, 2, 0, 6, 8, 7, 1, 3, 5, 9),
    (1, 7, 5, 0, 9, 8, 3, 4, 2, 6),
    (6, 1, 2, 3, 0, 4, 5, 9, 7, 8),
    (3, 6, 7, 4, 2, 0, 9, 5, 8, 1),
    (5, 8, 6, 9, 7, 2, 0, 1, 3, 4),
    (8, 9, 4, 5, 3, 6, 2, 0, 1, 7),
    (9, 4, 3, 8, 6, 1, 7, 2, 0, 5),
    (2, 5, 8, 1, 4, 3, 6, 7, 9, 0),
)
_KEYID: Final = re.compile(r"[0-9a-f]{64}")


def fingerprint(keyid: KeyId) -> str:
    """The key id's fingerprint: ten groups of five digits, a space between them."""
    text = f"{int(keyid, 16) % 10 ** (GROUPS * DIGITS):0{GROUPS * DIGITS}d}"
    groups = (text[place * DIGITS : (place + 1) * DIGITS] for place in range(GROUPS))
    return " ".join(group + str(_check_digit(place, group)) for place, group in enumerate(groups))


def check_fingerprint(keyid: KeyId, told: str) -> None:
    """Return only when this is the key's fingerprint, or its whole key id. White space and dashes do not matter.

    Raises: WrongFingerprint, naming the group that was misheard where a check digit tells.
    """
    plain = re.sub(r"[\s.-]", "", told).lower()
    if not _KEYID.fullmatch(plain):
        _check_digits(plain)
    expected = keyid if len(plain) == len(keyid) else re.sub(r"\s", "", fingerprint(keyid))
    if not hmac.compare_digest(plain.encode(), expected.encode()):
        raise WrongFingerprint("the fingerprint is that of another key")


def _check_digits(plain: str) -> None:
    if len(plain) != GROUPS * (DIGITS + 1) or not re.fullmatch("[0-9]+", plain):
        raise WrongFingerprint(f"a fingerprint is {GROUPS} groups of {DIGITS + 1} digits")
    for place in range(GROUPS):
        group = plain[place * (DIGITS + 1) : (place + 1) * (DIGITS + 1)]
        if str(_check_digit(place, group[:DIGITS])) != group[DIGITS]:
            raise WrongFingerprint(
                f"group {place + 1}, {group}, was misheard or mistyped: its last digit checks the others"
            )


def _check_digit(place: int, digits: str) -> int:
    state = place
    for digit in digits:
        state = _DAMM[state][int(digit)]
    return state
