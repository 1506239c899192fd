"""What stands where in the layers of an image: enough to tell where a file goes that is copied into it."""

from collections.abc import Iterable, Iterator, Set

from agent.domain.strict_tar import Kind
from agent.errors import BadBuild
from agent.ports.image_layers import Budget, Judged, LayerTar, Readable, is_whiteout

MAX_HOPS = 40
MAX_NAME_BYTES = 256 << 20


class Names:
    """The kinds of everything that the layers read so far show, by name; links with what they say."""

    def __init__(self) -> None:
        self._kinds: dict[str, Kind] = {}
        self._links: dict[str, str] = {}
        self._name_bytes = 0

    def read(self, raw: Readable, judged: Judged) -> None:
        """Lay one more layer over it. Raises: BadImage, BadBuild."""
        self._forget_all(frozenset(judged.hides), frozenset(judged.empties))
        for member in LayerTar(raw, Budget()):
            if member.name != "." and not is_whiteout(member.name):
                self.add(member.name, member.kind, member.link)

    def add(self, name: str, kind: Kind, link: str = "") -> None:
        """It stands there now, and folders above it."""
        for above in folders_above(name):
            self._kinds.setdefault(above, Kind.FOLDER)
        if kind is not Kind.FOLDER and self._kinds.get(name) is Kind.FOLDER:
            self._forget(f"{name}/")
        self._kinds[name] = kind
        self._links.pop(name, None)
        if kind is Kind.SYMBOLIC_LINK:
            self._links[name] = link
        self._name_bytes += len(name)
        if self._name_bytes > MAX_NAME_BYTES:
            raise BadBuild(f"the names in the base have more than {MAX_NAME_BYTES >> 20} MiB")

    def kind(self, name: str) -> Kind | None:
        """What stands there; the root is a folder."""
        return Kind.FOLDER if name == "" else self._kinds.get(name)

    def resolved(self, path: str) -> str:
        """The name that an absolute path leads to, links followed within the root; what is not there stays as told.

        Raises: BadBuild for links in a circle, or a way through a file.
        """
        left, found, hops = path.split("/"), list[str](), 0
        while left:
            part = left.pop(0)
            if part in {"", "."}:
                continue
            if part == "..":
                found = found[:-1]
                continue
            name = "/".join([*found, part])
            link = self._links.get(name)
            if link is None:
                if left and self.kind(name) not in {None, Kind.FOLDER}:
                    raise BadBuild(f"{path!r:.120} leads through {name!r:.120}, which is no folder")
                found.append(part)
                continue
            hops += 1
            if hops > MAX_HOPS:
                raise BadBuild(f"{path!r:.120} leads through links in a circle")
            left = link.split("/") + left
            if link.startswith("/"):
                found = []
        return "/".join(found)

    def _forget(self, prefix: str) -> None:
        self._take_out([name for name in self._kinds if name.startswith(prefix)])

    def _forget_all(self, hidden: Set[str], emptied: Set[str]) -> None:
        """These with all below them, and all below those. Looks through everything once."""
        if not (hidden or emptied):
            return
        ends = hidden | emptied
        self._take_out(
            [name for name in self._kinds if name in hidden or not ends.isdisjoint(folders_above(name))]
        )

    def _take_out(self, gone: Iterable[str]) -> None:
        for name in gone:
            del self._kinds[name]
            self._links.pop(name, None)


def folders_above(name: str) -> Iterator[str]:
    """a/b/c lies below a and a/b."""
    parts = name.split("/")
    return ("/".join(parts[:depth]) for depth in range(1, len(parts)))
