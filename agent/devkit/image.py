"""`python -m agent.devkit.image PROGRAM.py --out IMAGE.tar`: an image of one program, without any registry.

The image holds the running Python, the installed packages that --with names, and the program. The digest is printed: the same
program on the same installation gives the same one.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from agent.devkit.images import source_image


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the archive; 0, or 1 with a sentence on standard error."""
    told = _parser().parse_args(arguments)
    cache = (
        told.cache
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dc-compute" / "images"
    )
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest = source_image(
            told.out, told.program.name, told.program.read_bytes(), cache, distributions=told.packages
        )
    except PackageNotFoundError as missing:
        print(f"the package {missing.name} is not installed here: {sys.executable}", file=sys.stderr)
        return 1
    except OSError as cause:
        print(f"{cause.filename or told.out}: {cause.strerror}", file=sys.stderr)
        return 1
    told.out.with_name(f"{told.out.name}.note").unlink(missing_ok=True)
    print(digest)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent.devkit.image", description=__doc__)
    parser.add_argument("program", type=Path, help="one Python file, the entry point")
    parser.add_argument("--out", type=Path, required=True, help="where the OCI archive goes")
    parser.add_argument(
        "--with", dest="packages", action="append", default=[], metavar="PACKAGE", help="an installed package"
    )
    parser.add_argument("--cache", type=Path, help="where layers stay for the next image")
    return parser


if __name__ == "__main__":
    sys.exit(main())
