"""Guest program of the canary test: takes the data everywhere a guest can, then does what its first line says.

stay: waits to be killed · end: leaves a model · name: leaves a file that is called like the data, and cannot be taken
"""

import base64
import os
import sys
import time
from pathlib import Path

content = next(path for path in Path("/data/train").iterdir() if path.is_file()).read_bytes()
what, canary = content.split(b"\n")[:2]
for form in (content, content.hex().encode(), base64.b64encode(content)):
    os.write(1, form + b"\n")
    os.write(2, form + b"\n")
for folder in ("/tmp", "/dev/shm", "/data/train/pred", "/data/test/pred", "/data/model"):
    try:
        Path(folder, "taken").write_bytes(content)
    except OSError as error:
        print(f"{folder}: {error.strerror}", flush=True)
print("progress: 0.50 all of it was taken", flush=True)
if what == b"stay":
    Path("/data/model/waiting").write_bytes(b"")
    time.sleep(600)
Path("/data/model/taken").write_bytes(b"nothing\n")
if what == b"name":
    Path("/data/model", canary.decode()).symlink_to("nowhere")
sys.exit(0)
