"""Archiving 200 segments that wait, by pgwal archive-wal, against pgBackRest's archive-push, which works ahead as well.

A shell calls archive_command as a server's archiver does: for one segment after the other, waiting for each, and noting
each that is done.  Processor time is that of the calls: of what either leaves behind nothing is waited for.
"""

from __future__ import annotations

import shlex
import shutil
from functools import partial
from pathlib import Path

from benchmarks.context import Context
from benchmarks.measure import Comparison, Measurement, Side, compare, run_command
from benchmarks.pgbackrest import PgBackRest, installed
from pgwal_cli.throwaway_server import ThrowawayServer

_SEGMENTS = 200
_SCALE = 50
_LOAD_S = 20
_ARCHIVER = """\
cd {data} && for name in {names}; do
    {command} pg_wal/$name || exit 1
    mv pg_wal/archive_status/$name.ready pg_wal/archive_status/$name.done
done
"""


def run(context: Context) -> list[Comparison]:
    """Compare how long it takes until the last of the segments is archived; both compress by zstd's level 1."""
    found = installed(context)
    if found is None:
        return []
    program, old = found
    settings = {"archive_mode": True, "archive_command": "", "wal_keep_size": "8GB", "full_page_writes": True}
    with old.server("archive-server", **settings) as server:
        peer = PgBackRest(program, old.scratch / "pgbackrest", server, compression="zst")
        peer.create()
        repository = old.scratch / "archived"
        old.run_pgwal("full", "--repo", repository, "-d", server.conninfo, "-c", "fast")
        names = _segments_that_wait(server)
        server.stop()
        size_bytes = sum((server.data_directory / "pg_wal" / name).stat().st_size for name in names)
        push = peer.command("archive-push", "--archive-async", "--compress-level=1")
        archive = [str(old.pgwal), "archive-wal", "--repo", str(repository)]
        kept = peer.path / "repository" / "archive" / "measured"
        spool = peer.path / "spool"
        sides = [
            Side("pgbackrest archive-push, async", partial(_archive, server, names, push, kept, "*/0*", spool)),
            Side("pgwal archive-wal", partial(_archive, server, names, archive, repository / "wal", "0*")),
        ]
        title = f"archiving {_SEGMENTS} segments, one call after the other"
        return [compare(title, sides, context.rounds, bytes_processed=size_bytes, target=1.0)]


def _segments_that_wait(server: ThrowawayServer) -> list[str]:
    """Have a load write segments until there are enough, and return the first that wait."""
    server.run_tool("pgbench", "-i", "-q", "-s", str(_SCALE))
    ready = server.data_directory / "pg_wal" / "archive_status"
    while len(found := sorted(path.stem for path in ready.glob("00000001" + "?" * 16 + ".ready"))) < _SEGMENTS:
        server.run_tool("pgbench", "-n", "-c", "4", "-T", str(_LOAD_S))
        with server.connect() as connection:
            # Pages are written as images again.
            connection.execute("CHECKPOINT")
    return found[:_SEGMENTS]


def _archive(
    server: ThrowawayServer, names: list[str], command: list[str], kept: Path, pattern: str, spool: Path | None = None
) -> Measurement:
    """Archive all of them, after what the last run has archived is removed."""
    for path in kept.glob(pattern):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    wal = server.data_directory / "pg_wal"
    shutil.rmtree(wal / "archived.pgwal", ignore_errors=True)
    if spool is not None:
        shutil.rmtree(spool, ignore_errors=True)
    # Nothing waits behind them: both would go on with that.
    for path in (wal / "archive_status").iterdir():
        path.rename(path.with_suffix(".ready" if path.stem in names else ".done"))
    script = _ARCHIVER.format(
        data=shlex.quote(str(server.data_directory)), names=" ".join(names), command=shlex.join(command)
    )
    measured = run_command(["/bin/sh", "-c", script])
    stored = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    return measured._replace(stored_bytes=stored)
