"""Cold copies of a server: what a snapshot of its machine holds, to be put back or to be started as another server."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server


@dataclass
class ColdCopy:
    """The directories of a server that was down, tablespaces included; good for one use."""

    directory: Path
    locations: dict[Path, Path]
    """The copy of each tablespace that lies outside of the data directory."""

    @classmethod
    def take(cls, server: ThrowawayServer, directory: Path) -> Self:
        """Copy what a server has that does not run."""
        assert not server.is_running
        locations = {}
        for link in _outside_tablespaces(server.data_directory):
            locations[link.readlink()] = directory.with_name(f"{directory.name}_{link.name}")
            _copy(link.readlink(), locations[link.readlink()])
        _copy(server.data_directory, directory)
        return cls(directory, locations)

    def put_back(self, server: ThrowawayServer) -> None:
        """Give a server, which does not run, back what it had."""
        assert not server.is_running
        shutil.rmtree(server.data_directory)
        self.directory.rename(server.data_directory)
        for location, copied in self.locations.items():
            for child in location.iterdir():
                shutil.rmtree(child)
            for child in copied.iterdir():
                child.rename(location / child.name)

    def separate(self) -> Path:
        """Return the copy as a data directory of its own, with tablespaces of its own."""
        for link in _outside_tablespaces(self.directory):
            copied = self.locations[link.readlink()]
            link.unlink()
            link.symlink_to(copied)
        give_to_server(self.directory)
        return self.directory


def promote_alone(server: ThrowawayServer) -> None:
    """Start a server, which does not run, as a standby of nobody, and promote it: it begins a new timeline."""
    server.configure(primary_conninfo="")
    signal = server.data_directory / "standby.signal"
    signal.touch()
    give_to_server(signal)
    server.start()
    server.promote()


def _outside_tablespaces(data_directory: Path) -> list[Path]:
    return [link for link in (data_directory / "pg_tblspc").iterdir() if link.is_symlink()]


def _copy(source: Path, target: Path) -> None:
    # The owner stays.
    subprocess.run(["cp", "-a", source, target], check=True)
