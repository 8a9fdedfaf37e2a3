"""Run pgwal as a user without any rights, from tests that run as root.

That user may not be able to read the interpreter's files, so that everything is imported before the rights are dropped.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pgwal_process import TIMEOUT_S, Outcome, environment

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

_PROGRAM = """
import _strptime, os, pkgutil, pwd, sys
from importlib import import_module
import pgwal, pgwal_cli
for package in (pgwal, pgwal_cli):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
from pgwal_cli.main import make_app, run
from pgwal_cli.output import log_to_stderr
make_app()
log_to_stderr()
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
assert os.geteuid() == os.getuid() != 0
sys.exit(run(sys.argv[1:]))
"""


def as_ordinary_user() -> list[str]:
    """Return the command that runs pgwal without root's power to pass over permissions; empty for any other user."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("root needs setpriv to be stopped by permissions")
    return [setpriv, "--bounding-set=-dac_override,-dac_read_search"]


def run_as_nobody(*args: str | Path) -> Outcome:
    finished = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM, *map(str, args)],
        env=environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Outcome(finished.returncode, finished.stdout, finished.stderr)


def give_to_nobody(place: Path) -> None:
    """Make nobody the owner of a whole tree, links themselves among it."""
    nobody = pwd.getpwnam("nobody")
    for path in (place, *place.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
