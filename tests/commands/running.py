"""Runs `ift` as a user does, in a fresh process, without waiting for its imports each time.

A server process imports what the verbs import, but no verb and no flag, and forks for each
command line. So a command costs what it does, not the seconds that it takes to start Python.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

SERVER = """
import json, os, sys, traceback
import ift_jax.__main__
ift_jax.__main__.hide_torch()
import ift_jax.train.run, ift_jax.commands.config_flag
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
assert "torch" not in sys.modules
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(request["cwd"])
        os.environ.update(request["environment"])
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(request[name], flags), number)
        sys.argv = ["ift", *request["arguments"]]
        status = 0
        try:
            ift_jax.__main__.main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        if template_workers := sys.modules.get("ift_jax.data.template_sandbox"):
            template_workers.end_worker()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Outcome(NamedTuple):
    status: int
    stdout: str
    stderr: str


class Server:
    """`server.run(["data", "--config=quickstart"])` is `ift data --config=quickstart`."""

    def __init__(self) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
        environment.pop("XLA_FLAGS", None)
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(
        self, arguments: list[str], *, cwd: Path, stdin: str = "", **environment: str
    ) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            files = {name: str(Path(folder, name)) for name in ("stdin", "stdout", "stderr")}
            Path(files["stdin"]).write_text(stdin)
            request = {"arguments": arguments, "cwd": str(cwd), "environment": environment}
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.write(json.dumps({**request, **files}) + "\n")
            self._process.stdin.flush()
            status = self._process.stdout.readline()
            assert status, "the server has ended"
            shown = [Path(files[name]).read_text() for name in ("stdout", "stderr")]
            return Outcome(int(status), *shown)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=10)


@functools.cache
def server() -> Server:
    """The one server of a test run."""
    started = Server()
    atexit.register(started.close)
    return started
