"""What passes between root and the user that its servers run as, who may be anybody's."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import psycopg
import pytest

from pgwal.errors import PgwalError
from pgwal_cli.restore_command_relay import RestoreCommandRelay
from pgwal_cli.server_account import (
    append_as_server,
    give_to_server,
    read_of_server,
    require_own_place,
    server_account,
    server_identity,
)
from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import ThrowawayServer

SEGMENT = "000000010000000000000001"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as another user")


def as_server(script: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script as the user that servers run as."""
    command = ["/bin/sh", "-c", script, "sh", *map(str, args)]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, **server_identity())


def as_someone_else(script: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script as a user who is neither root nor the server's."""
    command = ["/bin/sh", "-c", script, "sh", *map(str, args)]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, user=4711, group=4711, extra_groups=[])


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"waited in vain for {path}"
        time.sleep(0.01)


# ---- who gets into a server


@pytest.mark.postgres(13, 18)
def test_a_server_lets_in_nobody_else(installation: ServerInstallation, guarded_scratch: Path) -> None:
    with ThrowawayServer(installation, guarded_scratch / "server") as server:
        server.initdb()
        server.start()
        with server.connect() as connection:
            connection.execute("CREATE ROLE another SUPERUSER LOGIN")
            assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        # Not under another name; the operating system says who it is.
        with pytest.raises(psycopg.OperationalError, match="Peer authentication failed"):
            server.connect(user="another")
        with pytest.raises(psycopg.OperationalError, match="refused"):
            server.connect(host="127.0.0.1")
        assert server.socket_directory.stat().st_mode & 0o777 == 0o700
        if os.geteuid() == 0:
            socket = server.socket_directory / f".s.PGSQL.{server.port}"
            assert as_server('test -S "$1"', socket).returncode == 0
            assert as_someone_else('test -S "$1"', socket).returncode != 0


@pytest.mark.postgres(18)
def test_a_socket_directory_that_is_open_is_not_used(installation: ServerInstallation, scratch: Path) -> None:
    (scratch / "server/socket").mkdir(parents=True)
    (scratch / "server/socket").chmod(0o755)
    with pytest.raises(PgwalError, match="open to other users"):
        ThrowawayServer(installation, scratch / "server")
    (scratch / "server/socket").rmdir()
    (scratch / "elsewhere").mkdir(mode=0o700)
    (scratch / "server/socket").symlink_to(scratch / "elsewhere")
    with pytest.raises(PgwalError, match="open to other users"):
        ThrowawayServer(installation, scratch / "server")


# ---- what is handed over


@as_root
def test_links_are_not_followed_when_a_tree_is_given(guarded_scratch: Path) -> None:
    theirs, ours = guarded_scratch / "theirs", guarded_scratch / "ours"
    (theirs / "base").mkdir(parents=True)
    ours.mkdir()
    (ours / "secret").touch()
    (theirs / "base/1").touch()
    (theirs / "base/link").symlink_to(ours / "secret")
    (theirs / "directory").symlink_to(ours)
    account = server_account()
    assert account is not None
    give_to_server(theirs)
    assert {path.lstat().st_uid for path in (theirs, *theirs.rglob("*"))} == {account.pw_uid}
    assert {path.lstat().st_uid for path in (ours, ours / "secret")} == {0}


@as_root
def test_what_the_servers_user_can_write_is_no_place_for_root(scratch: Path, guarded_scratch: Path) -> None:
    # The server's user owns this one.
    for place in (scratch, scratch / "below", scratch / "not/there"):
        with pytest.raises(PgwalError, match="can be written by others than root"):
            require_own_place(place)
    require_own_place(guarded_scratch / "not/there")
    link = guarded_scratch / "link"
    link.symlink_to(scratch)
    with pytest.raises(PgwalError, match="can be written by others than root"):
        require_own_place(link / "below")
    shared = guarded_scratch / "shared"
    shared.mkdir()
    (shared / "own").mkdir()
    shared.chmod(0o777)
    with pytest.raises(PgwalError, match="can be written by others than root"):
        require_own_place(shared / "own")
    # As /tmp is: nobody can move away what is another's.
    shared.chmod(0o1777)
    require_own_place(shared / "own")


def test_only_plain_files_of_a_server_are_read(scratch: Path) -> None:
    secret, pipe, plain = scratch / "secret", scratch / "pipe", scratch / "plain"
    secret.write_bytes(b"not for the server")
    (scratch / "link").symlink_to(secret)
    os.mkfifo(pipe)
    append_as_server(plain, b"a log")
    append_as_server(plain, b", and more")
    assert read_of_server(plain) == b"a log, and more"
    assert [read_of_server(path) for path in (scratch / "link", pipe, scratch, scratch / "none")] == [None] * 4


# ---- the relay


def test_the_relay_takes_names_alone(guarded_scratch: Path) -> None:
    """Requests are names in a directory that the server's user writes: no link is followed, no path is believed."""
    ours, victim = guarded_scratch / "ours", guarded_scratch / "victim"
    ours.mkdir()
    (ours / SEGMENT).write_bytes(b"WAL")
    victim.write_bytes(b"as it was")
    before = victim.stat()
    command = ["sh", "-c", 'cp "$0/$1" "$2"', str(ours)]
    with RestoreCommandRelay(command, guarded_scratch / "relay") as relay:
        (spool,) = (guarded_scratch / "relay").iterdir()
        requests = spool / "requests"
        bad = ["passwd.AAAAAA", f"{SEGMENT}.A", f"{SEGMENT.lower()}x.AAAAAA", "..AAAAAA", "-rf.AAAAAA"]
        plant = 'cd "$1" && shift && for name; do : >"$name" || exit 1; done'
        assert as_server(plant, requests, *(f"./{name}" for name in bad)).returncode == 0
        link = f"{SEGMENT}.linked"
        assert as_server('ln -s "$1" "$2"', victim, requests / link).returncode == 0
        wait_for(spool / "answers" / f"{link}.code")
        # All other directories are closed to it, or to be read alone.
        if os.geteuid() == 0:
            for name in ("", "answers", "fetched"):
                assert as_server(': >"$1/x"', spool / name).returncode != 0
            assert as_someone_else('ls "$1"', spool).returncode != 0
    after = victim.stat()
    assert victim.read_bytes() == b"as it was"
    assert (after.st_uid, after.st_mode, after.st_mtime_ns) == (before.st_uid, before.st_mode, before.st_mtime_ns)
    assert relay.answered == [(SEGMENT, 0)]
    assert list(requests.iterdir()) == [requests / link]


def test_the_relay_writes_where_the_servers_user_may(guarded_scratch: Path) -> None:
    """A destination that this user alone may write is none: the server's own process copies."""
    ours, closed, theirs = (guarded_scratch / name for name in ("ours", "closed", "theirs"))
    for directory in (ours, closed, theirs):
        directory.mkdir(mode=0o755)
    give_to_server(theirs)
    (ours / SEGMENT).write_bytes(b"WAL")
    command = ["sh", "-c", 'cp "$0/$1" "$2"', str(ours)]
    with RestoreCommandRelay(command, guarded_scratch / "relay") as relay:
        call = relay.restore_command.replace('"%f"', SEGMENT)
        assert as_server(call.replace("%p", str(theirs / "RECOVERYXLOG"))).returncode == 0
        assert as_server(call.replace("%p", str(theirs / "other")).replace(SEGMENT, f"{SEGMENT[:-1]}2")).returncode == 1
        if os.geteuid() == 0:
            assert as_server(call.replace("%p", str(closed / "RECOVERYXLOG"))).returncode == 255
    assert (theirs / "RECOVERYXLOG").read_bytes() == b"WAL"
    assert [path.name for path in theirs.iterdir()] == ["RECOVERYXLOG"]
    assert list(closed.iterdir()) == []


def test_the_relay_keeps_few_answers(guarded_scratch: Path) -> None:
    command = ["sh", "-c", 'echo WAL >"$1"']
    with RestoreCommandRelay(command, guarded_scratch / "relay") as relay:
        (spool,) = (guarded_scratch / "relay").iterdir()
        for number in range(20):
            as_server(': >"$1"', spool / "requests" / f"{SEGMENT}.AAAA{number:02}")
            wait_for(spool / "answers" / f"{SEGMENT}.AAAA{number:02}.code")
        assert len(list((spool / "requests").iterdir())) == 8
        assert len(list((spool / "answers").iterdir())) == 16
    assert len(relay.answered) == 20
