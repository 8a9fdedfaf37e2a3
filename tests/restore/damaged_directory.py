"""Random damage to a data directory: all that a restore into it must undo, and nothing outside of it."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

Tree = dict[str, tuple[str, int, bytes]]
KEPT = {"PG_VERSION", "global/pg_control"}
"""What tells whose directory it is."""


def tree(root: Path, places: Mapping[Path, str] | None = None) -> Tree:
    """Return all that a directory has: kind, mode, and content or where a link leads, of ``places`` their names."""
    found: Tree = {}
    for parent, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(parent) / name
            mode = path.lstat().st_mode
            kind, content = "other", b""
            if stat.S_ISLNK(mode):
                leads_to = path.readlink()
                kind, content = "link", os.fsencode((places or {}).get(leads_to, str(leads_to)))
            elif stat.S_ISDIR(mode):
                kind = "directory"
            elif stat.S_ISREG(mode):
                kind, content = "file", path.read_bytes()
            found[str(path.relative_to(root))] = (kind, 0 if kind == "link" else stat.S_IMODE(mode), content)
    return found


class Damage:
    """Does harm to a directory, and to the tablespaces that its links lead to; ``outside`` must stay as it is."""

    def __init__(self, root: Path, outside: Path, rng: random.Random) -> None:
        self._root = root
        self._outside = outside
        self._rng = rng
        outside.mkdir(exist_ok=True)
        (outside / "kept").mkdir()
        (outside / "kept/16384").write_bytes(b"of somebody else")
        (outside / "linked").write_bytes(b"a second name\n" * 1000)
        self._before = tree(outside)

    def do(self, number: int) -> list[str]:
        """Do some of it, and return what was done."""
        ways: list[Callable[[Path], object]] = [
            self._delete, self._truncate, self._grow, self._flip, self._flip, self._replace, self._empty,
            self._to_directory, self._to_link, self._to_fifo, self._hard_link, self._change_mode, self._foreign_file,
            self._foreign_directory, self._directory_to_file, self._directory_to_link, self._directory_mode,
            self._other_tablespace, self._change_link, self._stale_server, self._damage_control,
        ]  # fmt: skip
        done = []
        for _ in range(number):
            way = self._rng.choice(ways)
            path = self._rng.choice(self._files())
            done.append(f"{way.__name__} {path.relative_to(self._root)}")
            try:
                way(path)
            except PermissionError:
                # Only root does more where an earlier one has taken the mode away.
                done.append("which is not permitted")
        return done

    def require_outside_unchanged(self) -> None:
        assert tree(self._outside) == self._before

    def _files(self) -> list[Path]:
        found = [self._root / name for name in KEPT]
        for parent, _, files in os.walk(self._root, followlinks=True):
            found += [Path(parent) / name for name in files]
        wanted = [path for path in found if path.is_file() and not path.is_symlink() and not self._is_outside(path)]
        return sorted(path for path in wanted if str(path.relative_to(self._root)) not in KEPT) or wanted

    def _is_outside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._outside.resolve()) or path.stat().st_nlink > 1

    def _delete(self, path: Path) -> None:
        path.unlink()

    def _truncate(self, path: Path) -> None:
        os.truncate(path, self._rng.randrange(path.stat().st_size + 1))

    def _empty(self, path: Path) -> None:
        os.truncate(path, 0)

    def _grow(self, path: Path) -> None:
        with path.open("ab") as file:
            file.write(self._rng.randbytes(self._rng.choice((1, 8192, 100_000))))

    def _flip(self, path: Path) -> None:
        size = path.stat().st_size
        if not size:
            return
        with path.open("r+b") as file:
            at = self._rng.randrange(size)
            file.seek(at)
            byte = file.read(1)[0] ^ (1 << self._rng.randrange(8))
            file.seek(at)
            file.write(bytes([byte]))

    def _replace(self, path: Path) -> None:
        times = path.stat()
        path.write_bytes(self._rng.randbytes(times.st_size))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def _to_directory(self, path: Path) -> None:
        path.unlink()
        (path / "deep/deeper").mkdir(parents=True)
        (path / "deep/file").write_bytes(b"x")

    def _to_link(self, path: Path) -> None:
        path.unlink()
        path.symlink_to(self._rng.choice((self._outside / "kept/16384", self._outside / "absent")))

    def _to_fifo(self, path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    def _hard_link(self, path: Path) -> None:
        path.unlink()
        os.link(self._outside / "linked", path)

    def _change_mode(self, path: Path) -> None:
        path.chmod(self._rng.choice((0, 0o400, 0o644, 0o755, 0o4777)))

    def _foreign_file(self, path: Path) -> None:
        (path.parent / f"foreign {self._rng.randrange(1000)}").write_bytes(b"x" * 5000)

    def _foreign_directory(self, path: Path) -> None:
        foreign = path.parent / f"foreign.d{self._rng.randrange(1000)}"
        (foreign / "below").mkdir(parents=True, exist_ok=True)
        (foreign / "file").write_bytes(b"x")
        if not os.path.lexists(foreign / "below/link"):
            (foreign / "below/link").symlink_to(self._outside)
        (foreign / "below").chmod(self._rng.choice((0o700, 0)))

    def _directory_of(self, path: Path) -> Path | None:
        """Return the directory of a file, none that tells whose all of it is, or of a tablespace itself."""
        parts = path.relative_to(self._root).parts
        if len(parts) < 2 or parts[0] in ("global", "pg_tblspc"):
            return None
        return path.parent

    def _directory_to_file(self, path: Path) -> None:
        if (directory := self._directory_of(path)) is not None:
            shutil.rmtree(directory)
            directory.write_bytes(b"no directory")

    def _directory_to_link(self, path: Path) -> None:
        if (directory := self._directory_of(path)) is not None:
            shutil.rmtree(directory)
            directory.symlink_to(self._outside / "kept")

    def _directory_mode(self, path: Path) -> None:
        if (directory := self._directory_of(path)) is not None:
            directory.chmod(self._rng.choice((0o755, 0o777, 0o500)))

    def _other_tablespace(self, _: Path) -> None:
        link = self._root / "pg_tblspc" / str(self._rng.randrange(20_000, 30_000))
        if link.parent.is_dir() and not os.path.lexists(link):
            link.symlink_to(self._outside / "kept")

    def _change_link(self, _: Path) -> None:
        """Take a tablespace away, with what it holds, and have its link lead elsewhere, or be none."""
        for link in sorted((self._root / "pg_tblspc").glob("*")):
            if link.is_symlink() and not link.readlink().is_relative_to(self._outside):
                for child in link.readlink().iterdir():
                    shutil.rmtree(child)
                link.unlink()
                if self._rng.random() < 0.5:
                    link.symlink_to(self._outside / "kept")
                else:
                    link.mkdir()
                    (link / "file").write_bytes(b"x")
                return

    def _stale_server(self, _: Path) -> None:
        pid_file = self._root / "postmaster.pid"
        # Earlier damage may have made it a second name of a file outside, a link, a fifo or a directory.
        if pid_file.is_dir() and not pid_file.is_symlink():
            shutil.rmtree(pid_file)
        pid_file.unlink(missing_ok=True)
        pid_file.write_text("4194303\n/gone\n1700000000\n5432\n\n\n   1   1\n")

    def _damage_control(self, _: Path) -> None:
        """Damage pg_control, but not what it says of whose it is."""
        with (self._root / "global/pg_control").open("r+b") as file:
            file.seek(self._rng.randrange(8, 300))
            file.write(self._rng.randbytes(1))
