"""The contract of who may do what in a repository, the second of three: see also ``store`` and ``spool``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Leases(Protocol):
    """Who may receive, who may change backups, and who reads what must not be removed.

    Each ends with its context, and with the process that has it.  Nothing here waits for another process.
    """

    def lock(self, name: str, holder: str) -> AbstractContextManager[None]:
        """Be the only one to have the lock of a name.

        Raises RepositoryLocked, naming the holder, when another has it; ``holder`` is what others are told then.
        """

    def hold(self, name: str, *, exclusive: bool = False) -> AbstractContextManager[None]:
        """Hold an object: together with others that read it, or ``exclusive`` to remove it.

        Raises ObjectNotFound when it is gone, RepositoryLocked when another stands against it.
        """

    def confirm(self) -> None:
        """Prove that what this process has is still its own, before something that cannot be taken back.

        Raises LeaseLost where another has taken it over meanwhile, RepositoryError where that cannot be found out.
        """

    def is_locked(self, name: str) -> bool:
        """Tell whether somebody has the lock of a name."""
