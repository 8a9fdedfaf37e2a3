"""Prove that a local data directory is that of the server at the other end of a connection.

The system identifier does not tell: copies of a cluster share it, standbys and restored servers among them.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pgwal.budget import CLOCK_DIFFERENCE_S, DIRECTORY_ATTEMPTS, DIRECTORY_PAUSE_S, STARTING_S
from pgwal.control_file import ControlStamp
from pgwal.datadir.postmaster_file import read_postmaster_file
from pgwal.datadir.reader import LocalDataDirectory
from pgwal.errors import WrongCluster
from pgwal.postgres.server import read_control_stamp, read_postmaster

if TYPE_CHECKING:
    from pathlib import Path

    import psycopg

_HINT = "--pgdata and the connection must name the same server, not a standby of it or a copy."


def require_servers_directory(path: Path, connection: psycopg.Connection) -> None:
    """Raise WrongCluster unless a directory's pg_control and postmaster.pid are the server's.

    Raises ServerError or FormatError where they cannot be read.
    """
    _require_same_control_file(path, connection)
    found = read_postmaster_file(path)
    if found is None:
        raise WrongCluster(
            f"data directory {path} is not that of this server: it has no postmaster.pid, so that none runs on it",
            hint=_HINT,
        )
    started_at_s, port = read_postmaster(connection)
    if found.port != port or not -CLOCK_DIFFERENCE_S <= started_at_s - found.started_at_s <= STARTING_S:
        raise WrongCluster(
            f"data directory {path} is not that of this server: the one that runs on it was started at"
            f" {_time(found.started_at_s)} with port {found.port}, this one at {_time(started_at_s)} with port {port}",
            hint=_HINT,
        )


def _require_same_control_file(path: Path, connection: psycopg.Connection) -> None:
    directory = LocalDataDirectory(path)
    for attempt in range(DIRECTORY_ATTEMPTS):
        if attempt:
            time.sleep(DIRECTORY_PAUSE_S)
        found = ControlStamp.decode(directory.read_control_file())
        servers = read_control_stamp(connection)
        if found == servers:
            return
    raise WrongCluster(
        f"data directory {path} is not that of this server: its last checkpoint is {_text(found)}, the server's"
        f" {_text(servers)}",
        hint=_HINT,
    )


def _text(stamp: ControlStamp) -> str:
    return (
        f"at {stamp.checkpoint_lsn} on timeline {stamp.timeline_id}, of {_time(stamp.checkpoint_at_s)} (pg_control"
        f" written at {_time(stamp.written_at_s)})"
    )


def _time(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(sep=" ", timespec="seconds")
