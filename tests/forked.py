"""Commands and notebook kernels as forks of one process that has imported Unsloth: each is spared half a minute of imports.

python tests/forked.py serve SOCKET TINY        builds the tiny model in the folder TINY and then answers at SOCKET
python tests/forked.py ask SOCKET tunebook sft  `tunebook sft`, with this process's folder, environment, input and output
python tests/forked.py ask SOCKET kernel -f F   a Python kernel with the connection file F
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path


def serve(address: str, tiny: str) -> None:
    from tunebook import cli, models  # noqa: F401 - what the forks start with

    models.backend()
    import tiny_llama
    import trl  # noqa: F401

    tiny_llama.build(Path(tiny), models.embedded_model())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            client, _ = listener.accept()
            request, streams, *_ = socket.recv_fds(client, 2**20, 3)
            if os.fork() == 0:
                listener.close()
                answer(client, json.loads(request), streams)
            client.close()
            for stream in streams:
                os.close(stream)


def answer(client: socket.socket, request: dict, streams: list[int]) -> None:
    """In a fork: run the request in another one and send its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(OSError):  # nobody waits any more
            client.send(str(code).encode())
        os._exit(0)
    client.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    sys.argv = request["argv"]
    sys.path[0] = ""
    code: int | str | None = 1
    try:
        code = run()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(bool(code)))


def run() -> int:
    if sys.argv[0] == "kernel":
        os.environ["JPY_PARENT_PID"] = str(os.getppid())  # it ends when that process does
        from ipykernel.kernelapp import IPKernelApp

        IPKernelApp.launch_instance(sys.argv[1:])
    else:
        from tunebook import cli

        cli.main()
    return 0


def ask(address: str, argv: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a kernel is interrupted before it is told to end
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(address)
        request = {"argv": argv, "folder": str(Path.cwd()), "environment": dict(os.environ)}
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
        return int(server.recv(16) or 1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    sys.exit(ask(sys.argv[2], sys.argv[3:]))
