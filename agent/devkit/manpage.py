"""`python -m agent.devkit.manpage [--out FILE]` writes the manual page of `dc-compute`, for a build or an installation.

The command line lies a rank above this room: it is asked as a program.
"""

import subprocess
import sys


def main() -> int:
    """The exit code of `agent.cli.manpage` with the same arguments."""
    return subprocess.call([sys.executable, "-m", "agent.cli.manpage", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
