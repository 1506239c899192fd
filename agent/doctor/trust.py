"""Who this agent is to others: its certificate, its entry and everybody else's in the roster, what its policy admits."""

from collections.abc import Collection
from datetime import datetime

from msgspec import Struct

from agent.doctor.lines import Check, Group, Unknown
from agent.domain.ids import KeyId
from agent.trust.certificates import CertificateView
from agent.trust.expiry import AHEAD, Expiry, Kind, due
from agent.trust.policy import HostPolicy
from agent.trust.roster import Role, Roster, RosterEntry

GROUP = Group("trust")


class Tls(Struct, frozen=True, kw_only=True):
    """The certificate that this agent serves. `key_fits`: whether the key file is its key."""

    certificate_path: str
    key_path: str
    certificate: CertificateView | Unknown
    key_fits: bool | Unknown


class Trust(Struct, frozen=True, kw_only=True):
    """What is there. `command`: how this agent's own is called; `me`: the own key's id; `hosts`: by which it may be called.

    `mend_key`: the command that makes the key, or makes it readable for this agent alone.
    """

    command: str
    now: datetime
    me: KeyId | Unknown
    mend_key: str
    tls: Tls
    hosts: Collection[str]
    roster: Roster | Unknown
    roster_path: str
    policy: HostPolicy | Unknown
    policy_path: str
    ends: tuple[Expiry, ...] = ()  # what ends when, of all that is here


def judge(facts: Trust) -> list[Check]:
    """The certificate, the roster, the policy."""
    lines = [_identity(facts), *_tls(facts)]
    if isinstance(facts.roster, Unknown):
        lines.append(GROUP.fail("roster", facts.roster.reason, f"${{EDITOR:-vi}} {facts.roster_path}"))
    else:
        lines += [*_own_entry(facts, facts.roster), *_others(facts, facts.roster), *_ends(facts)]
    return [*lines, *_policy(facts)]


def command(facts: Trust, words: str) -> str:
    """A command of this agent."""
    return f"{facts.command} {words}"


def _identity(facts: Trust) -> Check:
    if isinstance(facts.me, Unknown):
        return GROUP.fail("identity", facts.me.reason, facts.mend_key)
    return GROUP.ok("identity", f"key {facts.me[:16]}…")


# ------------------------------------------------------------------ the certificate


def _tls(facts: Trust) -> list[Check]:
    tls, certificate = facts.tls, facts.tls.certificate
    if isinstance(certificate, Unknown):
        host = next(iter(sorted(facts.hosts)), "HOST")
        mend = command(facts, f"init --certificate {host}")
        return [GROUP.fail("certificate", certificate.reason, mend)]
    return [_dates(facts, certificate), _names(facts, certificate), _key(tls, facts)]


def _renew(facts: Trust) -> str:
    """A certificate by an authority of its own; who has one of a real authority asks that one."""
    tls = facts.tls
    names = facts.hosts or (() if isinstance(tls.certificate, Unknown) else tls.certificate.names)
    wanted = " ".join(f"--certificate {name}" for name in sorted(names)) or "--certificate HOST"
    away = f"mv {tls.certificate_path} {tls.certificate_path}.old && mv {tls.key_path} {tls.key_path}.old"
    return f"{away} && {command(facts, f'init {wanted}')}"


def _dates(facts: Trust, certificate: CertificateView) -> Check:
    name, until = "certificate", _day(certificate.not_after)
    if facts.now >= certificate.not_after:
        return GROUP.fail(name, f"over since {until}: nobody can call this agent", _renew(facts))
    if facts.now < certificate.not_before:
        seen = f"holds from {_day(certificate.not_before)} only"
        return GROUP.fail(name, seen, _renew(facts))
    if facts.now + AHEAD >= certificate.not_after:
        return GROUP.warn(name, f"ends {until}", _renew(facts))
    return GROUP.ok(name, f"until {until}")


def _names(facts: Trust, certificate: CertificateView) -> Check:
    name = "certificate names"
    told = ", ".join(certificate.names) or "nobody"
    missing = sorted(host for host in facts.hosts if not certificate.is_for(host))
    if missing:
        seen = f"for {told}, and others call this agent at {', '.join(missing)}"
        return GROUP.fail(name, seen, _renew(facts))
    if not facts.hosts:
        return GROUP.note(name, f"for {told}; the roster says nowhere that this agent is called")
    return GROUP.ok(name, told)


def _key(tls: Tls, facts: Trust) -> Check:
    name = "certificate key"
    if isinstance(tls.key_fits, Unknown):
        return GROUP.fail(name, f"{tls.key_path}: {tls.key_fits.reason}", _renew(facts))
    if not tls.key_fits:
        return GROUP.fail(name, f"{tls.key_path} is the key of another certificate", _renew(facts))
    return GROUP.ok(name, "fits")


# ------------------------------------------------------------------ the roster


def _own_entry(facts: Trust, roster: Roster) -> list[Check]:
    name = "own entry"
    if isinstance(facts.me, Unknown):
        return [GROUP.note(name, "cannot tell without the key")]
    entry, edit = roster.find(facts.me), f"${{EDITOR:-vi}} {facts.roster_path}"
    if entry is None:
        add = f"peers add --help  # with role agent and key id {facts.me[:16]}…, at {facts.roster_path}"
        return [GROUP.fail(name, "the roster does not know this agent's key", command(facts, add))]
    if entry.role is not Role.AGENT:
        return [GROUP.fail(name, f"its role is {entry.role}, not agent", edit)]
    lines = [_validity(facts, name, entry, edit, is_own=True)]
    if entry.agent_url is None:
        seen = "without agent_url: nobody knows where to call, and signed requests are refused"
        lines.append(GROUP.fail("own address", seen, edit))
    if roster.storage_of(facts.me) is None:
        seen = "the roster names no storage of this node: give the entry storage_url, and storage an entry with the same one"
        lines.append(GROUP.fail("own storage", seen, edit))
    return lines


def _others(facts: Trust, roster: Roster) -> list[Check]:
    """Everybody whose key is over or ends soon; one line when nobody's does."""
    mine = () if isinstance(facts.me, Unknown) else roster.keys_of(facts.me)
    others = [
        one
        for one in roster.entries
        if one.keyid not in mine and one.revoked_at is None and roster.keys_of(one.keyid)[-1] == one.keyid
    ]
    source = next(
        (one.keyid[:16] for one in roster.orchestrators() if one.is_valid(facts.now)), "ROSTER_FILE"
    )
    sync = command(facts, f"peers sync {source} --root ROOT_KEY")
    lines = [_validity(facts, f"{one.role} {one.name}", one, sync, is_own=False) for one in others]
    worth = [line for line in lines if line.state != "ok"]
    if worth:
        return worth
    revoked = sum(1 for one in roster.entries if one.revoked_at is not None)
    return [GROUP.ok("roster", f"{len(others)} others, all valid for {AHEAD.days} days; {revoked} revoked")]


def _ends(facts: Trust) -> list[Check]:
    """What ends beside keys and the own certificate: overlaps of rotations, authorities, the chain that is served."""
    mends = {
        Kind.OVERLAP: command(facts, "keys rotate --check"),
        Kind.AUTHORITY: command(
            facts, "peers show --help  # and ask its owner for the next authority's certificate"
        ),
        Kind.CHAIN: _renew(facts),
    }
    told = (one for one in due(facts.ends, facts.now) if one.kind in mends)
    words = {True: "over since", False: "ends"}
    return [
        GROUP.warn(
            f"{one.kind} {one.name}", f"{words[one.is_over(facts.now)]} {_day(one.at)}", mends[one.kind]
        )
        for one in told
    ]


def _validity(facts: Trust, name: str, entry: RosterEntry, mend: str, *, is_own: bool) -> Check:
    make = GROUP.fail if is_own else GROUP.warn
    if entry.revoked_at is not None:
        return make(name, f"revoked at {_day(entry.revoked_at)}", mend)
    if facts.now >= entry.valid_until:
        return make(name, f"over since {_day(entry.valid_until)}", mend)
    if facts.now < entry.valid_from:
        return make(name, f"holds from {_day(entry.valid_from)} only", mend)
    if facts.now + AHEAD >= entry.valid_until:
        return GROUP.warn(name, f"ends {_day(entry.valid_until)}", mend)
    return GROUP.ok(name, f"until {_day(entry.valid_until)}")


# ------------------------------------------------------------------ the policy


def _policy(facts: Trust) -> list[Check]:
    policy, edit = facts.policy, f"${{EDITOR:-vi}} {facts.policy_path}"
    if isinstance(policy, Unknown):
        return [GROUP.fail("policy", policy.reason, edit)]
    lists = {
        "orchestrators": policy.orchestrators,
        "images": policy.images,
        "datasets": policy.datasets,
        "kinds": policy.kinds,
    }
    empty = [name for name, admitted in lists.items() if not admitted]
    if empty:
        return [
            GROUP.warn("policy", f"admits nothing: {', '.join(empty)} of {facts.policy_path} is empty", edit)
        ]
    lines = [
        GROUP.ok("policy", f"admits {len(policy.images)} images of {len(policy.orchestrators)} orchestrators")
    ]
    if isinstance(facts.roster, Roster):
        lines += _strangers(policy, facts.roster, facts, edit)
    return lines


def _strangers(policy: HostPolicy, roster: Roster, facts: Trust, edit: str) -> list[Check]:
    known = {one.keyid for one in roster.orchestrators() if one.is_valid(facts.now)}
    strange = [keyid[:16] for keyid in policy.orchestrators if keyid not in known]
    if not strange:
        return []
    seen = f"admits orchestrators that the roster does not know as valid: {', '.join(strange)}"
    return [GROUP.warn("policy orchestrators", seen, edit)]


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")
