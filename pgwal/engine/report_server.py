"""What a server tells for a report: how it and the slot stand, what it lacks, names, and the next backup's size."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field

from pgwal.engine.backup_request import BackupRequest
from pgwal.engine.check import CheckRequest, Finding, check_server
from pgwal.engine.forecast import Forecast, forecast_backup
from pgwal.engine.status import ServerStatus, read_server_status
from pgwal.errors import PasswordRequired, PgwalError, StoreUnavailable, WrongCluster
from pgwal.postgres.connection import ConnectionParameters, connect_sql
from pgwal.postgres.relations import read_database_names, read_relation_names
from pgwal.relation import RelFileLocator
from pgwal.repository.repository import Repository

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ServerSide:
    """What was learnt; ``problem`` says why there is nothing, ``forecast_problem`` why there is no forecast."""

    status: ServerStatus | None = None
    problem: str | None = None
    lacks: list[Finding] = field(default_factory=list)
    forecast: Forecast | None = None
    forecast_problem: str | None = None


def ask_server(
    repository: Repository, parameters: ConnectionParameters, slot: str | None, *, has_backup: bool, thoroughly: bool
) -> ServerSide:
    """Ask a server that may be away.

    ``thoroughly`` tries what streaming and backups need, and has all files listed for the forecast.

    Raises WrongCluster when the server is another cluster's, PasswordRequired when it wants one, StoreUnavailable.
    """
    found = ServerSide()
    try:
        found.status = read_server_status(parameters, slot, system_identifier=repository.identity.system_identifier)
        if thoroughly:
            found.lacks = list(check_server(CheckRequest(parameters, slot=slot)).findings)
    except (WrongCluster, StoreUnavailable, PasswordRequired):
        # Whoever called may ask for the password.
        raise
    except PgwalError as error:
        found.problem = str(error)
        return found
    if thoroughly and has_backup:
        try:
            found.forecast = forecast_backup(BackupRequest(repository.place, parameters, since="latest"))
        except (WrongCluster, StoreUnavailable):
            raise
        except PgwalError as error:
            found.forecast_problem = str(error)
    return found


@dataclass(frozen=True, slots=True)
class Names:
    """What the server calls relations and databases; those of other databases than the connected one are not known."""

    relations: dict[RelFileLocator, str] = field(default_factory=dict)
    databases: dict[int, str] = field(default_factory=dict)


def read_names(parameters: ConnectionParameters, rel_numbers: Collection[int]) -> Names:
    """Ask for names; none where the server does not answer."""
    try:
        with connect_sql(parameters) as connection:
            return Names(read_relation_names(connection, rel_numbers), read_database_names(connection))
    except PgwalError as error:
        logger.debug("relations stay without names: %s", error)
        return Names()
