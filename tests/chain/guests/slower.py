"""Guest program of the chain tests: takes half a minute, then leaves a model."""

import time
from pathlib import Path

print("progress: 0.50 half way", flush=True)
time.sleep(30)
Path("/data/model/done").write_text("yes\n")
