"""Guest program of the chain tests: one more line in the model, and nothing else."""

import sys
from pathlib import Path

if sys.argv[-1] == "train":
    lines = Path("/data/model/lines")
    learnt = sorted(path.name for path in Path("/data/train").iterdir() if path.is_file())
    lines.write_text((lines.read_text() if lines.exists() else "") + "\n".join(learnt) + "\n")
