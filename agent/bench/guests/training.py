"""The guest of the bench: a training that times itself, or nothing at all.

    guest.py -V /data -T train     each file in /data/train is JSON: {"trees": n, "rows": [[…]], "targets": […]}

With 0 trees it only reads the file. The last line of stdout is JSON: seconds of the training itself, by the wall clock and of
CPU, without interpreter start and imports.
"""

import argparse
import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Train on each file, and tell how long it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-V", dest="volume", type=Path, required=True)
    parser.add_argument("-T", dest="task", choices=("train",), required=True)
    volume = parser.parse_args().volume
    (path,) = (path for path in (volume / "train").iterdir() if path.is_file())
    told = json.loads(path.read_text())
    seconds = {"train_s": 0.0, "train_cpu_s": 0.0}
    if told["trees"]:
        import numpy as np
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.linear_model import LogisticRegression

        rows, targets = np.array(told["rows"]), np.array(told["targets"])
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        forest = RandomForestClassifier(n_estimators=told["trees"], random_state=7).fit(rows, targets)
        line = LogisticRegression(max_iter=told["trees"]).fit(rows / 16, targets)
        np.savez(volume / "model" / "model.npz", coef=line.coef_, importance=forest.feature_importances_)
        seconds = {
            "train_s": time.perf_counter() - began_s,
            "train_cpu_s": time.process_time() - began_cpu_s,
        }
    sys.stdout.write(json.dumps(seconds) + "\n")


if __name__ == "__main__":
    main()
