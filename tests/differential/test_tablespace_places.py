"""Tablespaces in odd places: below the data directory, behind relative links, and what only looks like one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from differential.test_presence import ROWS, SOURCES, Site, site  # noqa: F401
from guarded.other_user import as_root
from pgwal_process import assert_failed, run_pgwal, succeed
from psycopg.conninfo import make_conninfo
from restore.restored_server import assert_sound, checksums

from pgwal.backup.exclusion import tablespace_version_directory
from pgwal_cli.exit_codes import FAILED
from pgwal_cli.throwaway_server import give_to_server

pytestmark = pytest.mark.postgres(13, 18)

ROLE = "backup"
TABLE = f"CREATE TABLE t TABLESPACE side AS {ROWS}"


def documented_role(site: Site) -> list[str | Path]:  # noqa: F811
    """Make a role as ``pgwal grants`` says, and return how to connect as it."""
    grants = succeed("grants", "--role", ROLE, "-d", site.server.conninfo)
    statements = [line for line in grants.splitlines() if line.startswith("GRANT")]
    assert statements
    site.run(f"CREATE ROLE {ROLE} LOGIN REPLICATION", *statements)
    return ["-d", make_conninfo(site.server.conninfo, user=ROLE)]


def take(site: Site, command: str, source: str, *args: str | Path) -> None:  # noqa: F811
    succeed(*site.taking(command, source), *args)


def assert_restored(site: Site, place: Path) -> None:  # noqa: F811
    """Restore it with its tablespace elsewhere, and compare what is there."""
    succeed("verify", "--repo", site.repo)
    succeed("stream", "--once", "--repo", site.repo, "-d", site.server.conninfo)
    expected = checksums(site.server)
    target, side = site.scratch / "restored", site.scratch / "restored_side"
    site.scene.restore(target, tablespaces={place: side})
    assert [link.readlink() for link in (target / "pg_tblspc").iterdir()] == [side]
    with site.scene.started(target) as server:
        assert checksums(server) == expected
        assert_sound(server)
    # And with its tablespace where it was, below the data directory.
    if place.is_relative_to(site.server.data_directory):
        inside = site.scratch / "inside"
        mapping = f"{place}={inside / place.relative_to(site.server.data_directory)}"
        succeed("restore", "--repo", site.repo, "-D", inside, "-T", mapping)
        give_to_server(inside)
        with site.scene.started(inside) as server:
            assert checksums(server) == expected


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("how", ["plain", "linked", "deep"])
def test_a_tablespace_below_the_data_directory_is_stored_once(site: Site, source: str, how: str) -> None:  # noqa: F811
    """Whatever the paths say: with a role that may not see where the data directory is, and by a link."""
    data_directory = site.server.data_directory
    name = "own/side" if how == "deep" else "side"
    root = data_directory
    if how == "linked":
        root = site.scratch / "link"
        root.symlink_to(data_directory)
    place = root / name
    place.mkdir(mode=0o700, parents=True)
    give_to_server(data_directory / name.partition("/")[0])
    site.run(f"CREATE TABLESPACE side LOCATION '{place}'", TABLE)
    connect = documented_role(site)
    take(site, "full", source, *connect)
    site.run("UPDATE t SET filler = 'y' WHERE id < 100")
    take(site, "incremental", source, *connect)
    version = tablespace_version_directory(site.server.installation.major)
    for backup_id in [path.name for path in (site.repo / "backups").iterdir()]:
        of_tablespace = [path for path in site.paths(backup_id) if version in path]
        assert of_tablespace
        assert all(path.startswith("pg_tblspc/") for path in of_tablespace)
    assert_restored(site, place)


@pytest.mark.parametrize("source", SOURCES)
def test_a_relative_link_counts_as_where_it_leads(site: Site, source: str) -> None:  # noqa: F811
    place = site.location("side")
    site.run(f"CREATE TABLESPACE side LOCATION '{place}'", TABLE)
    site.server.stop()
    (link,) = (site.server.data_directory / "pg_tblspc").iterdir()
    link.unlink()
    link.symlink_to(os.path.relpath(place, link.parent))
    site.server.start()
    take(site, "full", source)
    site.run("UPDATE t SET filler = 'y' WHERE id < 100")
    take(site, "incremental", source)
    assert_restored(site, place)
    if source == "sql":
        outcome = run_pgwal(*site.taking("full", source), *documented_role(site))
        assert_failed(outcome, FAILED, "relative to a data directory that the role may not see", "pg_read_all_settings")


@as_root
@pytest.mark.parametrize("source", SOURCES)
def test_no_other_link_is_followed(site: Site, source: str) -> None:  # noqa: F811
    """In pg_tblspc lie links of tablespaces alone; root could follow any other, and the server many."""
    links = site.server.data_directory / "pg_tblspc"
    secret, closed = site.scratch / "secret", site.scratch / "closed"
    for place in (secret, closed / "in"):
        place.mkdir(parents=True)
        (place / "file").write_text("secret")
    give_to_server(secret)
    closed.chmod(0o700)
    make: dict[str, Callable[[Path], None]] = {
        "elsewhere": lambda path: path.symlink_to(secret),
        "016400": lambda path: path.symlink_to(secret),
        "99999": lambda path: path.symlink_to(secret),
        "99998": lambda path: path.symlink_to(closed / "in"),
        "99997": lambda path: path.symlink_to(secret / "file"),
        "99996": lambda path: path.symlink_to(site.scratch / "nowhere"),
        "closed": lambda path: path.symlink_to(closed / "in"),
        "directory": lambda path: path.mkdir(),
        "file": lambda path: path.write_text("stray") and None,
    }
    place = site.location("side")
    site.run(f"CREATE TABLESPACE side LOCATION '{place}'", TABLE)
    for name, action in make.items():
        action(links / name)
        os.chown(links / name, links.stat().st_uid, links.stat().st_gid, follow_symlinks=False)
    outcome = run_pgwal(*site.taking("full", source), *documented_role(site))
    assert outcome.code == 0, outcome.stderr
    for name in ("elsewhere", "closed", "file"):
        assert f"skipping pg_tblspc/{name}: " in outcome.stderr
    (backup,) = (site.repo / "backups").iterdir()
    (kept,) = (backup / "data/pg_tblspc").iterdir()
    of_tablespaces = [path for path in site.paths(backup.name) if path.startswith("pg_tblspc/")]
    assert of_tablespaces
    assert all(path.startswith(f"pg_tblspc/{kept.name}/") for path in of_tablespaces)
    for name in make:
        if (links / name).is_dir() and not (links / name).is_symlink():
            (links / name).rmdir()
        else:
            (links / name).unlink()
    assert_restored(site, place)


@as_root
@pytest.mark.parametrize("source", SOURCES)
def test_a_tablespace_that_cannot_be_looked_into_is_an_error(site: Site, source: str) -> None:  # noqa: F811
    outer = site.scratch / "outer"
    outer.mkdir(mode=0o755)
    place = outer / "side"
    place.mkdir()
    give_to_server(place)
    site.run(f"CREATE TABLESPACE side LOCATION '{place}'", TABLE)
    # Nothing is left to write there.
    site.server.stop()
    site.server.start()
    place.rename(outer / "moved")
    place.write_text("a file")
    outcome = run_pgwal(*site.taking("full", source))
    oid = site.value("SELECT oid FROM pg_tablespace WHERE spcname = 'side'")
    assert_failed(outcome, FAILED, f"pg_tblspc/{oid}")
    assert list((site.repo / "backups").iterdir()) == []
