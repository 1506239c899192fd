"""Which kinds of file system lie in memory: by the name that mountinfo gives, and by the number that statfs gives."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

IN_MEMORY: Final[Mapping[str, int]] = MappingProxyType(
    {"tmpfs": 0x01021994, "ramfs": 0x858458F6}  # TMPFS_MAGIC, RAMFS_MAGIC of linux/magic.h
)
