"""How one run of runc is taken away: processes, runc's state, cgroups, where it was set up, and what it is known by last."""

from pathlib import Path

from msgspec import Struct

from agent.errors import RuntimeUnavailable
from agent.ports.runtime_runc_cgroups import Cgroups
from agent.ports.runtime_runc_programs import Programs
from agent.ports.runtime_runc_runs import Known, Runs, end_unknown
from agent.ports.user_namespace import UserNamespace


class Removal(Struct, frozen=True):
    """Of the runs of one agent."""

    runs: Runs
    programs: Programs
    cgroups: Cgroups
    inside: UserNamespace

    def destroy(self, folder: Path, only: Known | None = None) -> None:
        """Kill what runs there, and take everything of it away: of `only` this very run, for its name may be another's by now.
        Gone already is fine. Raises: RuntimeUnavailable.
        """
        self.programs.check()
        try:
            self._take_away(folder, only)
        except RuntimeUnavailable:  # the helper died: another one goes on where it was
            self._take_away(folder, only)

    def _take_away(self, folder: Path, only: Known | None) -> None:
        if only is not None and not self.runs.is_there(folder, only):
            self._take_rest_away(folder)
            return
        known = self.runs.read(folder)
        if known is not None:
            known.end()
        self._clear(folder.name, is_ended=known is not None and known.pid != 0)
        self.runs.forget(folder)

    def _take_rest_away(self, folder: Path) -> None:
        """What was made of a run after somebody took it away, and that nobody else knows of. Where the name is another run's by
        now, it is let alone.
        """
        with self.runs.alone():
            if self.runs.read(folder) is None:
                self._clear(folder.name, is_ended=False)

    def _clear(self, name: str, *, is_ended: bool) -> None:
        """Everything of a run but its folder. `is_ended`: its processes are gone."""
        if not is_ended:
            end_unknown(name, self.programs.state_of(name))
        self.programs.forget(name)
        self.cgroups.remove(name)
        self.inside.do("unstage_run", f"{self.inside.stage}/{name}")
