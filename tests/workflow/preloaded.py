"""Snakemake, imported once and forked for each call: to start it anew takes more than a second of CPU time.

What is called is Snakemake's own command line, in a process, folder and environment of its own; nothing of the project is
imported before. As a script this file is the process that is forked.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

#: Longest time of a call, in seconds.
TIMEOUT_S = 300


def call_snakemake(
    options: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """What `snakemake OPTIONS` does there; standard output and error in `stdout`."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as output:
        request = {
            "options": options,
            "folder": str(folder),
            "environment": dict(environment),
            "output": output.name,
        }
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        if not answer:
            _server.cache_clear()
            raise RuntimeError(f"Snakemake did not end within {TIMEOUT_S} s:\n{output.read()[-5000:]}")
        return subprocess.CompletedProcess(["snakemake", *options], int(answer), output.read())


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        start_new_session=True,
    )
    atexit.register(server.kill)
    return server


def serve() -> None:
    """Fork for each line of the input; write a line with the exit status."""
    # What a call imports in any case, by itself or for the plugins it finds.
    import pandas  # noqa: F401
    import snakemake.cli  # noqa: F401

    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        child = os.fork()
        if not child:
            become(**request)
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(0, signal.SIGKILL))
        signal.alarm(TIMEOUT_S)
        _, status = os.waitpid(child, 0)
        signal.alarm(0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(options: Sequence[str], folder: str, environment: Mapping[str, str], output: str) -> NoReturn:
    """Be `python -m snakemake`, there and with that environment."""
    from snakemake.cli import __file__ as program
    from snakemake.cli import main

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    written, nothing = os.open(output, os.O_WRONLY), os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (written, 1), (written, 2)):
        os.dup2(source, target)
    sys.path[0] = folder
    sys.path[1:1] = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = [str(Path(program).with_name("__main__.py")), *options]
    main()


if __name__ == "__main__":
    serve()
