"""Run pgwal commands as forks of one process that has imported everything; the program of fork_server.py.

Reads one JSON object a line, and answers each with one: see ``ForkServer.run``.  Each command ends as a process of
its own does, through the end of the interpreter, which waits for threads that are left.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import pkgutil
import runpy
import select
import signal
import sys
from importlib import import_module
from typing import Any

_DUMP_S = 10


def main() -> None:
    _import_all()
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(request)
            runpy.run_module("pgwal_cli", run_name="__main__", alter_sys=True)
            return
        print(json.dumps(_wait(pid, request["timeout_s"])), flush=True)


def _import_all() -> None:
    for name in ("pgwal", "pgwal_cli"):
        package = import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                import_module(module.name)


def _become(request: dict[str, Any]) -> None:
    """Make this process one that runs the command."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.setsid()
    os.umask(request["umask"])
    for descriptor, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir("/")
    # Shows where it waits when it is ended for taking too long.
    faulthandler.enable(all_threads=True)
    sys.argv = ["pgwal", *request["arguments"]]
    if "roots" in request:
        _arm(request)


def _arm(request: dict[str, Any]) -> None:
    """Have faulty_system.c, which is preloaded, watch what this process does."""
    faults = ctypes.CDLL(None)
    for root in request["roots"]:
        faults.faults_watch(root.encode())
    if request["log"] is not None:
        faults.faults_log(os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND))
    if request["fault"] is not None:
        kind, name, nth, error, sticky = request["fault"]
        faults.faults_arm(kind.encode(), name.encode(), nth, error, sticky)


def _wait(pid: int, timeout_s: float) -> dict[str, Any]:
    descriptor = os.pidfd_open(pid)
    try:
        is_ended = bool(select.select([descriptor], [], [], timeout_s)[0])
        if not is_ended:
            os.kill(pid, signal.SIGABRT)
            if not select.select([descriptor], [], [], _DUMP_S)[0]:
                os.kill(pid, signal.SIGKILL)
    finally:
        os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    return {"ended": is_ended, "code": os.waitstatus_to_exitcode(status)}


if __name__ == "__main__":
    main()
