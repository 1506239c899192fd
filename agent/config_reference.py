"""The settings as people read them: a row for each key, as TOML with comments and as a page. All comes from the Structs."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct, inspect

from agent.config import RELOADED, SECTIONS, SYSTEM_HOME, Settings, load_settings

UNITS = {"_s": "seconds", "_bytes": "bytes", "_days": "days", "_millis": "thousandths"}
INSTALLED_SECCOMP = "/opt/dc-compute/share/dc-compute/seccomp"  # where install.sh puts it
COLUMNS = 110


class Row(Struct, frozen=True, kw_only=True):
    """One key. `range` and `unit` are empty where there is none; `default` as TOML writes it, None when it is not set."""

    section: str
    key: str
    type: str
    range: str
    unit: str
    default: str | None
    words: str

    @property
    def is_reloaded(self) -> bool:
        """Whether a running service takes a change over when it reloads."""
        return (self.section, self.key) in RELOADED


def rows(settings: Settings | None = None) -> Iterator[Row]:
    """Every key with its default: by these settings, else those of an installed host."""
    shown = load_settings(SYSTEM_HOME, {}) if settings is None else settings
    for section, kind in SECTIONS.items():
        for field in msgspec.structs.fields(kind):
            told, words = _unwrapped(inspect.type_info(field.type))
            value = getattr(getattr(shown, section), field.name)
            if settings is None and (section, field.name) == ("runtime", "seccomp_dir"):
                value = INSTALLED_SECCOMP
            yield Row(
                section=section,
                key=field.name,
                type=_type_of(told),
                range=_range_of(told),
                unit=next((unit for end, unit in UNITS.items() if field.name.endswith(end)), ""),
                default=None if value is None else as_toml(value),
                words=words,
            )


def toml_text(values: Mapping[tuple[str, str], Any] | None = None, settings: Settings | None = None) -> str:
    """A file of settings that shows every key: `values` are set, the others stand as comments with their default."""
    told = values or {}
    lines = [
        "# The settings of this dc-compute agent. What is commented out shows its default; paths are relative to this folder.",
        "# The environment overrides them (DC_COMPUTE_LISTEN_PORT is `port` of [listen]), then `--set listen.port=8443`.",
        "# `dc-compute config check` judges this file, `dc-compute config show` tells what is in force.",
    ]
    section = ""
    for row in rows(settings):
        if row.section != section:
            section = row.section
            lines += ["", f"# {SECTIONS[section].__doc__}", f"[{section}]"]
        lines += [f"# {line}" for line in textwrap.wrap(_comment(row), COLUMNS)]
        if (section, row.key) in told:
            lines.append(f"{row.key} = {as_toml(told[section, row.key])}")
        else:
            lines.append(f"# {row.key} is not set" if row.default is None else f"# {row.key} = {row.default}")
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """The page docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Written by `dc-compute config reference --markdown`; a test holds this page equal to it.",
        "",
        "`agent.toml` lies in the folder of the settings: `--home DIR`, else `$DC_COMPUTE_HOME`, else `/etc/dc-compute` when",
        "it can be read, else the user's own. Over it goes the environment (`DC_COMPUTE_LISTEN_PORT` is `port` of `[listen]`),",
        "and over both a flag of `serve`, `work` and `run` (`--set listen.port=8443`). A path is relative to the folder of the",
        "settings. An unknown name is refused with the nearest right one. Defaults of paths are those of an installed host.",
        "",
        "*Reload*: taken over by `dc-compute reload` or `systemctl reload`. Everything else is read when a service starts.",
        "Roster, policy and certificate are reloaded too: what the files hold, not where they lie.",
    ]
    section = ""
    for row in rows():
        if row.section != section:
            section = row.section
            lines += ["", f"## `[{section}]`", "", str(SECTIONS[section].__doc__), ""]
            lines += ["| key | what it is | type | default |", "|---|---|---|---|"]
        kind = ", ".join(part for part in (row.type, row.range, row.unit) if part)
        default = "not set" if row.default is None else f"`{row.default}`"
        words = row.words + (" *Reload.*" if row.is_reloaded else "")
        lines.append(f"| `{row.key}` | {words} | {kind.replace('|', '&#124;')} | {default} |")
    return "\n".join(lines) + "\n"


def as_toml(value: object) -> str:
    """A setting's value as TOML writes it; JSON's text, numbers and lists are TOML's too."""
    return msgspec.json.encode(value, enc_hook=str).decode()


def _comment(row: Row) -> str:
    facts = ", ".join(part for part in (row.type, row.range, row.unit) if part)
    return f"{row.words} ({facts}{'; changes at a reload' if row.is_reloaded else ''})"


def _unwrapped(told: inspect.Type) -> tuple[inspect.Type, str]:
    """The type itself, and the words that stand with it."""
    words = ""
    while isinstance(told, inspect.Metadata):
        words = words or str((told.extra_json_schema or {}).get("description", ""))
        told = told.type
    return told, words


def _type_of(told: inspect.Type) -> str:
    match told:
        case inspect.IntType():
            return "whole number"
        case inspect.FloatType():
            return "number"
        case inspect.StrType():
            return "text"
        case inspect.VarTupleType():
            return "list of texts"
        case inspect.UnionType():
            return _type_of(next(one for one in told.types if not isinstance(one, inspect.NoneType)))
        case _:
            return "path"


def _range_of(told: inspect.Type) -> str:
    if isinstance(told, inspect.StrType) and told.pattern is not None:
        return told.pattern.removesuffix(r"(?!\n)$").strip("^()$").replace("|", " or ")
    if not isinstance(told, inspect.IntType | inspect.FloatType):
        return ""
    low = f"over {told.gt:g}" if told.gt is not None else "" if told.ge is None else f"{told.ge} to"
    high = "" if told.le is None else f"{told.le}"
    return f"{low}, at most {high}" if told.gt is not None else f"{low} {high}".strip()
