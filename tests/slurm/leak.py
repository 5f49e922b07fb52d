"""As sitecustomize.py on the path of a job: its inference takes far too much memory, once, when it has answered something."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

MARK = Path("leaked")


def leak() -> None:
    while not any(file.stat().st_size for file in Path("journal").glob("*/*.jsonl")):
        time.sleep(0.01)
    MARK.touch()
    leaked = b"\1" * 2**30
    os.kill(os.getpid(), signal.SIGSTOP)  # and never gets any further
    print(len(leaked))


if any(argument.endswith("infer_sweep.py") for argument in sys.orig_argv) and not MARK.exists():
    threading.Thread(target=leak, daemon=True).start()
