"""Guest program of the chaos run, problem and algorithm in one: what it leaves is a function of what it was given.

The model is one line, the digest of the line before and the data; a prediction that of model and data; a score follows
from that. `pace` beside it says how many seconds a training takes.
"""

import hashlib
import json
import sys
import time
from pathlib import Path


def files(folder: str) -> list[Path]:
    return sorted(path for path in Path(folder).iterdir() if path.is_file())


def line(*parts: bytes) -> bytes:
    return hashlib.sha256(b"\n".join(parts)).hexdigest().encode()


task = sys.argv[sys.argv.index("-T") + 1]
if task == "train":
    model = Path("/data/model/state")
    state = model.read_bytes() if model.exists() else b""
    print("progress: 0.50 half way", flush=True)
    time.sleep(float(Path(__file__).with_name("pace").read_text()))
    for path in files("/data/train"):
        state = line(state, path.read_bytes())
    model.unlink(missing_ok=True)
    model.write_bytes(state)
elif task == "predict":
    state = Path("/data/model/state").read_bytes()
    for path in files("/data/test"):
        Path("/data/test/pred", path.name).write_bytes(line(state, path.read_bytes()))
elif task == "detarget":
    for path in files("/hidden_data/test"):
        Path("/submission_data/test", path.name).write_bytes(path.read_bytes().split(b"\n")[0])
elif task == "perf":
    scores = {}
    for path in files("/hidden_data/test"):
        predicted = Path("/submission_data/test/pred", path.name).read_bytes()
        scores[path.name] = int(predicted[:8], 16) / 2**32
    told = {"perf": sum(scores.values()) / len(scores), "train_perf": {}, "test_perf": scores}
    Path("/hidden_data/perf/performance.json").write_text(json.dumps(told))
