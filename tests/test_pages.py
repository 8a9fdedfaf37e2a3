"""The tutorial and the how-to pages: each command runs as it is printed, on a real server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from pgwal_process import succeed
from restore.restored_server import Scene
from support.shared_bucket import shared_bucket
from support.typed_page import ROOT, TypedPage, server_time, typed_commands
from test_main_job import prepare, run_load

from pgwal_cli.throwaway_server import ThrowawayServer

DOCS = ROOT / "docs"
HOW_TO = sorted(page.stem for page in (DOCS / "how-to").glob("*.md"))
POINT = "2026-11-22 10:15:30+00"
# What runs each time; the others take a server and a minute of processor time together.
QUICK = {"encryption", "restore-to-a-point"}

large = pytest.mark.skipif("PGWAL_LARGE_TESTS" not in os.environ, reason="PGWAL_LARGE_TESTS is not set")


@pytest.fixture
def typed(server: ThrowawayServer, make_server: ServerFactory, scratch: Path) -> TypedPage:
    """Somebody beside a server with a table and its slot; nothing is backed up yet."""
    repo = scratch / "repo"
    (scratch / "keys").mkdir()
    prepare(server)
    names: dict[str, str | Path] = {
        "/srv/backups/main": repo,
        "/srv/": f"{scratch}/",
        "/usr/lib/postgresql/18/bin": server.installation.bin_dir,
        "new.example.org": server.socket_directory,
        "host=db.example.org user=pgwal": server.conninfo,
    }
    steps = iter(range(1000))
    return TypedPage(
        scratch,
        names,
        Scene(repo, make_server),
        server,
        after_backup=lambda: run_load(server, next(steps)),
    )


def back_up(page: TypedPage, kinds: str) -> None:
    """Take backups, ``f`` full and ``i`` incremental, with rows in between, and receive all WAL behind them."""
    assert page.scene is not None
    assert page.server is not None
    where = ["--repo", page.scene.repo, "-d", page.server.conninfo]
    slot = ["--slot", "pgwal", "--create-slot", "--if-not-exists"]
    succeed("stream", *where, *slot, "--once")
    for kind in kinds:
        succeed("full" if kind == "f" else "incremental", *where, "-c", "fast", "--slot", "pgwal")
        page.after_backup()
    succeed("stream", *where, *slot, "--once")


def for_a_point(page: TypedPage) -> None:
    assert page.server is not None
    back_up(page, "f")
    with page.server.connect() as connection:
        # A point counts as behind a backup from the next second on.
        connection.execute("SELECT pg_sleep(1)")
    page.names = {**page.names, POINT: server_time(page.server)}
    page.after_backup()
    back_up(page, "i")


def for_a_standby(page: TypedPage) -> None:
    back_up(page, "fi")


def for_a_failover(page: TypedPage) -> None:
    """The server becomes a standby, and then a primary on a timeline of its own."""
    assert page.server is not None
    back_up(page, "f")
    page.server.stop()
    (page.server.data_directory / "standby.signal").touch()
    page.server.start()
    page.server.promote()
    page.after_backup()


def for_a_full_disk(page: TypedPage) -> None:
    back_up(page, "fff")


def for_a_gap(page: TypedPage) -> None:
    """An archive has a segment of which the repository has lost all."""
    assert page.scene is not None
    assert page.server is not None
    back_up(page, "f")
    for _ in range(3):
        with page.server.connect() as connection:
            connection.execute("SELECT pg_switch_wal()")
        page.after_backup()
    back_up(page, "")
    wal = page.scene.repo / "wal"
    shutil.copytree(wal, page.directory / "archive")
    lost = sorted(file for file in wal.iterdir() if len(file.name.partition(".")[0]) == 24)[-2]
    lost.unlink()
    for summary in (page.scene.repo / "summaries").iterdir():
        summary.unlink()


def for_s3(page: TypedPage) -> None:
    bucket = shared_bucket()
    page.names = {"s3://example-backups/main": bucket.place().address, **page.names}
    page.environment |= {f"REAL_{name}": value for name, value in bucket.server.environment().items()}
    page.environment |= bucket.server.environment()


SCENES: dict[str, Callable[[TypedPage], None]] = {
    "disk-full": for_a_full_disk,
    "failover": for_a_failover,
    "gap": for_a_gap,
    "restore-to-a-point": for_a_point,
    "s3": for_s3,
    "standby": for_a_standby,
}

SHOWN = {
    "encryption": ("nothing is wrong",),
    "failover": ("timeline         2",),
    "first-backup": ("nothing is wrong",),
    "gap": ("missing",),
    "standby": ("[(True,)]",),
}
"""What a page's commands must have printed: that its case was there."""


@pytest.mark.postgres(18)
@pytest.mark.only_format("plain")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else large) for name in HOW_TO])
def test_how_to_page(name: str, typed: TypedPage) -> None:
    SCENES.get(name, lambda _page: None)(typed)
    typed.run(DOCS / "how-to" / f"{name}.md")
    for expected in SHOWN.get(name, ()):
        assert expected in typed.output


@large
@pytest.mark.postgres(18)
@pytest.mark.only_format("plain")
def test_how_wal_decides(typed: TypedPage) -> None:
    back_up(typed, "fi")
    typed.run(DOCS / "how-wal-decides.md")
    assert "FORK main: blocks" in typed.output


@large
def test_tutorial(guarded_scratch: Path) -> None:
    page = TypedPage(guarded_scratch)
    page.run(DOCS / "tutorial.md")
    assert "the restored server equals the source" in page.output
    assert "nothing is wrong" in page.output
    assert "exit code 5" in page.output
    assert page.output.count("exit code") == 2


@large
def test_installation(tmp_path: Path) -> None:
    source = tmp_path / "source"
    left_out = shutil.ignore_patterns(".git", "build", "*.so", "*.egg-info", ".hypothesis", "__pycache__")
    shutil.copytree(ROOT, source, ignore=left_out)
    (tmp_path / "bin").mkdir()
    places = {"/opt/": tmp_path, "/usr/local/bin/": tmp_path / "bin", "/usr/local/share/": tmp_path / "share"}
    names = {place: f"{real}/" for place, real in places.items()}
    page = TypedPage(source, {'".[': f'"{source}[', **names})
    page.environment["PATH"] = f"{tmp_path / 'bin'}:{page.environment['PATH']}"
    # What is installed, and not what lies here.
    page.environment.pop("PYTHONPATH", None)
    page.run(DOCS / "installation.md")
    assert "compiled WAL scanner" in page.output
    assert (tmp_path / "share" / "man" / "man1" / "pgwal-restore.1").exists()


def test_each_page_has_commands_and_all_are_run() -> None:
    assert set(SCENES) | QUICK <= set(HOW_TO)
    for name in HOW_TO:
        assert typed_commands(DOCS / "how-to" / f"{name}.md"), name
