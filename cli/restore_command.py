"""The command with which a restored server gets its WAL, and a short way to run it.

A server runs it for each segment that it replays; the command line in general takes several times as long to import.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pgwal.encryption.key_sources import KeySources
from pgwal.repository.place import address_of

if TYPE_CHECKING:
    from pgwal.repository.address import Address
    from pgwal.repository.place import Place

NOT_FOUND = 1
FATAL = 126
"""Above 125: the server stops recovery instead of taking the file as absent."""

_FLAGS: tuple[list[str], ...] = tuple(
    [*first, *last] for first in ([], ["--to-gap"], ["--standby"]) for last in ([], ["--prefetch"])
)


def fetch_wal_words(place: Place, *, to_gap: bool = False, for_standby: bool = False) -> list[str]:
    """Return the command that fetches WAL from a repository, without the file's name and its destination."""
    words = [sys.executable, "-P", "-m", "pgwal_cli", "fetch-wal", "--repo", address_of(place)]
    # Not what they are: where they are, for what is in them must be in no setting.
    identity, command, metadata_key = place.keys.resolved()
    if identity is not None:
        words += ["--identity", str(identity.absolute())]
    if command is not None:
        words += ["--identity-command", command]
    if metadata_key is not None:
        words += ["--metadata-key", str(metadata_key.absolute())]
    if for_standby:
        return [*words, "--standby"]
    return [*words, "--to-gap"] if to_gap else words


def restore_command(place: Place, *, prefetch: bool = True, to_gap: bool = False, for_standby: bool = False) -> str:
    """Return the restore_command with which a server gets its WAL from a repository.

    With ``prefetch`` it looks first where ``fetch-wal --prefetch`` puts what it fetches ahead; with ``to_gap`` recovery
    may end where WAL is missing that has more behind it; ``for_standby``, recovery does not end, and whole segments
    alone are fetched.
    """
    fetch = shlex.join(fetch_wal_words(place, to_gap=to_gap, for_standby=for_standby)).replace("%", "%%")
    if not prefetch:
        return f'{fetch} "%f" "%p"'
    # Not at the top: what fails to be imported must not end the fetching of WAL with exit code 1.
    from pgwal.engine.prefetch_wal import SPOOL_SUFFIX

    return f'mv -f "%p{SPOOL_SUFFIX}/%f" "%p" 2>/dev/null || {fetch} --prefetch "%f" "%p"'


def run_short(arguments: Sequence[str]) -> int | None:
    """Run a command line as ``restore_command`` makes it and return the exit code; None when it is another one."""
    match arguments:
        case ["fetch-wal", "--repo", repo, *flags, name, destination]:
            sources, flags = _key_sources(flags)
            if flags in _FLAGS and not any(value.startswith("-") for value in (repo, name, destination)):
                return fetch_or_explain(
                    repo,
                    name,
                    Path(destination),
                    sources,
                    prefetch="--prefetch" in flags,
                    to_gap="--to-gap" in flags,
                    for_standby="--standby" in flags,
                )
    return None


def _key_sources(flags: Sequence[str]) -> tuple[KeySources, list[str]]:
    """Return where keys come from as the first flags say, in the order of ``fetch_wal_words``, and the others."""
    left, found = list(flags), dict[str, str]()
    for option in ("--identity", "--identity-command", "--metadata-key"):
        if left[:1] == [option] and len(left) > 1:
            found[option] = left[1]
            del left[:2]
    identity, command, metadata_key = map(found.get, ("--identity", "--identity-command", "--metadata-key"))
    return KeySources(Path(identity) if identity else None, command, Path(metadata_key) if metadata_key else None), left


def fetch_or_explain(
    repo: Address,
    name: str,
    destination: Path,
    keys: KeySources | None = None,
    *,
    prefetch: bool = False,
    to_gap: bool = False,
    for_standby: bool = False,
) -> int:
    """Fetch a file and return the exit code; what went wrong is on stderr.

    ``keys`` are those of an address; a place has its own.
    """
    try:
        from pgwal.engine.fetch_wal import fetch
        from pgwal.errors import ObjectNotFound, PgwalError
        from pgwal.repository.address import place_at

        try:
            place = place_at(repo) if keys is None else place_at(repo).with_keys(keys)
            fetch(place, name, destination, prefetch=prefetch, to_gap=to_gap, for_standby=for_standby)
        except ObjectNotFound:
            print(f"pgwal: {name} is not in the repository", file=sys.stderr)
            return NOT_FOUND
        except PgwalError as error:
            from pgwal_cli.output import print_error

            print_error(error)
            return FATAL
    except KeyboardInterrupt:
        # The process ends by the signal, which is as good as FATAL.
        raise
    except BaseException as error:
        # Whatever it is: an exit code below 126 would tell the server that its WAL ends here.
        print(f"pgwal: error: {type(error).__name__}: {error}", file=sys.stderr)
        return FATAL
    return 0
