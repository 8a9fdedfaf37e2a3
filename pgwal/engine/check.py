"""Find out, before anything starts, what a server and a role lack for streaming and for backups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from pgwal.control_file import ControlFile
from pgwal.datadir.reader import LocalDataDirectory
from pgwal.engine.prepare_backup import require_data_directory, require_page_images, require_wal_level
from pgwal.engine.slot_guard import Retention, RetentionLimit
from pgwal.errors import PgwalError, RepositoryError, ServerError, SettingRequired, StoreUnavailable, UnsupportedVersion
from pgwal.postgres.connection import ConnectionParameters, connect_replication, connect_sql
from pgwal.postgres.privileges import FILE_FUNCTIONS, RoleRights, grant_hint, grant_replication, read_role_rights
from pgwal.postgres.server import ServerFacts, backup_function_signatures, current_flush_lsn, read_server_facts
from pgwal.postgres.server_condition import ServerCondition, read_server_condition
from pgwal.postgres.slots import SlotFacts, read_slot
from pgwal.repository.place import Place

if TYPE_CHECKING:
    import psycopg


class Status(Enum):
    OK = "ok"
    WARNING = "warning"
    LACKING = "lacking"
    """Streaming or backups are not possible as it is."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, and the way out where it is not in order."""

    name: str
    status: Status
    message: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """Whom to ask, and what is meant to be done; without ``data_directory`` backups go over SQL."""

    parameters: ConnectionParameters
    data_directory: Path | None = None
    slot: str | None = None
    place: Place | None = None
    """Where a repository is to be."""
    max_retained_bytes: int | None = None
    """How much WAL the slot may make the server retain."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    role: str
    database: str
    findings: tuple[Finding, ...]

    @property
    def is_lacking(self) -> bool:
        return any(finding.status is Status.LACKING for finding in self.findings)


def check_server(request: CheckRequest) -> CheckReport:
    """Look at settings and privileges, and change nothing.

    Raises ConnectionFailed when there is no connection for SQL, StoreUnavailable when the store of the repository does
    not answer; everything else that is wrong is a finding.
    """
    with connect_sql(request.parameters) as connection:
        info = connection.info
        return CheckReport(info.user, info.dbname, tuple(_findings(connection, request)))


def _findings(connection: psycopg.Connection, request: CheckRequest) -> Iterator[Finding]:
    try:
        facts = read_server_facts(connection)
    except (UnsupportedVersion, SettingRequired) as error:
        yield _lacking("version", error)
        return
    condition = read_server_condition(connection)
    rights = read_role_rights(
        connection, connection.info.user, (*backup_function_signatures(facts.version_num), *FILE_FUNCTIONS)
    )
    yield Finding("version", Status.OK, f"PostgreSQL {condition.settings['server_version']}")
    yield _wal_level(facts)
    yield _full_page_writes(facts)
    yield _replication(request.parameters, rights)
    yield _wal_senders(condition)
    yield _slots(condition)
    if request.slot is not None:
        slot = read_slot(connection, request.slot)
        yield _slot(request.slot, slot)
        if slot is not None and slot.restart_lsn is not None and request.max_retained_bytes is not None:
            retained_bytes = max(0, current_flush_lsn(connection) - slot.restart_lsn)
            yield _retention(slot, retained_bytes, RetentionLimit(request.max_retained_bytes))
    yield _functions("backup functions", "start and stop backups", rights, file_functions=False)
    if request.data_directory is None:
        yield _functions("file functions", "read files over SQL", rights, file_functions=True)
    else:
        yield _data_directory(request.data_directory, facts, connection)
    if request.place is not None:
        yield _repository(request.place)
    yield from _warnings(facts, condition)


# ---- what streaming and backups need ----


def _lacking(name: str, error: PgwalError) -> Finding:
    return Finding(name, Status.LACKING, str(error), error.hint)


def _repository(place: Place) -> Finding:
    try:
        place.require_suitable()
        place.probe()
    except StoreUnavailable:
        raise
    except RepositoryError as error:
        return _lacking("repository", error)
    return Finding("repository", Status.OK, str(place))


def _wal_level(facts: ServerFacts) -> Finding:
    try:
        require_wal_level(facts)
    except SettingRequired as error:
        return _lacking("wal_level", error)
    return Finding("wal_level", Status.OK, facts.wal_level)


def _full_page_writes(facts: ServerFacts) -> Finding:
    name = "full_page_writes"
    try:
        require_page_images(facts, is_full=True)
    except SettingRequired as error:
        return _lacking(name, error)
    try:
        require_page_images(facts, is_full=False)
    except SettingRequired:
        return Finding(
            name,
            Status.WARNING,
            "off: full backups are possible, incremental ones are refused",
            "Set full_page_writes = on and reload the server.",
        )
    return Finding(name, Status.OK, "on")


def _replication(parameters: ConnectionParameters, rights: RoleRights) -> Finding:
    """Try a replication connection: only that shows whether pg_hba.conf and .pgpass allow it."""
    name = "replication connection"
    if not rights.can_replicate:
        return Finding(
            name,
            Status.LACKING,
            f"role {rights.name} may not replicate",
            f"A superuser can run: {grant_replication(rights.name)}",
        )
    try:
        connect_replication(parameters).close()
    except ServerError as error:
        return _lacking(name, error)
    return Finding(name, Status.OK, f"role {rights.name} may connect for replication")


def _wal_senders(condition: ServerCondition) -> Finding:
    name, most, used = "max_wal_senders", int(condition.settings["max_wal_senders"]), condition.wal_sender_count
    if used < most:
        return Finding(name, Status.OK, f"{most}, of which {used} are in use")
    if most == 0:
        status, message = Status.LACKING, "0: replication is switched off"
    else:
        status, message = Status.WARNING, f"all {most} are in use; a receiver needs one"
    return Finding(name, status, message, "Raise max_wal_senders and restart the server.")


def _slots(condition: ServerCondition) -> Finding:
    name, most, used = "max_replication_slots", int(condition.settings["max_replication_slots"]), condition.slot_count
    if used < most:
        return Finding(name, Status.OK, f"{most}, of which {used} are in use")
    return Finding(
        name,
        Status.WARNING,
        f"all {most} are in use: without a slot, WAL may be removed before it is received",
        "Raise max_replication_slots and restart the server, or drop a slot that is not needed.",
    )


def _slot(wanted: str, slot: SlotFacts | None) -> Finding:
    name = f"slot {wanted}"
    if slot is None:
        return Finding(name, Status.WARNING, "is not there yet", f"Run: pgwal stream --slot {wanted} --create-slot")
    if slot.slot_type != "physical":
        return Finding(name, Status.LACKING, f"is a {slot.slot_type} slot", "Name another slot: pgwal needs its own.")
    if slot.invalidation_reason is not None and slot.invalidation_reason != "wal_removed":
        return Finding(
            name,
            Status.LACKING,
            f"was invalidated by the server: {slot.invalidation_reason}",
            f"Drop it with SELECT pg_drop_replication_slot('{wanted}') and make it again; WAL that the server has"
            " removed since is missing then.",
        )
    if slot.wal_status == "lost":
        return Finding(
            name,
            Status.LACKING,
            "has lost WAL that it was to keep",
            f"Drop it with SELECT pg_drop_replication_slot('{wanted}'), make it again, and take a full backup.",
        )
    return Finding(name, Status.OK, "in use" if slot.active else "not in use")


def _retention(slot: SlotFacts, retained_bytes: int, limit: RetentionLimit) -> Finding:
    name = f"WAL retained by slot {slot.name}"
    retention = limit.judge(retained_bytes)
    message = f"{retained_bytes >> 20} MB of at most {limit.max_bytes >> 20} MB"
    if retention is Retention.WITHIN:
        return Finding(name, Status.OK, message)
    # What is too much ends in a full disk, or in a slot that is lost.
    return Finding(
        name,
        Status.WARNING if retention is Retention.NEAR else Status.LACKING,
        f"{message}; {'a' if slot.active else 'no'} receiver is connected",
        f"Start pgwal stream --slot {slot.name}. If that cannot be, drop the slot before the server's disk is full:"
        f" SELECT pg_drop_replication_slot('{slot.name}'); a full backup is needed then.",
    )


def _functions(name: str, purpose: str, rights: RoleRights, *, file_functions: bool) -> Finding:
    missing = [each for each in rights.missing_functions if (each in FILE_FUNCTIONS) == file_functions]
    if not missing:
        return Finding(name, Status.OK, f"role {rights.name} may {purpose}")
    functions = ", ".join(signature.partition("(")[0] for signature in missing)
    return Finding(
        name,
        Status.LACKING,
        f"role {rights.name} may not {purpose}: {functions}",
        grant_hint(rights.database, rights.name, missing),
    )


def _data_directory(path: Path, facts: ServerFacts, connection: psycopg.Connection) -> Finding:
    name = "data directory"
    try:
        control = ControlFile.decode(LocalDataDirectory(path).read_control_file())
        require_data_directory(path, control, facts, connection)
    except PgwalError as error:
        return _lacking(name, error)
    return Finding(name, Status.OK, f"{path} is the server's, and can be read")


# ---- what is worth knowing ----


def _warnings(facts: ServerFacts, condition: ServerCondition) -> Iterator[Finding]:
    settings = condition.settings
    yield _judged(
        "data_checksums",
        facts.data_checksums,
        ("on", "off: pages damaged on disk go unnoticed into backups"),
        "Stop the server and run pg_checksums --enable; then take a full backup.",
    )
    yield _judged(
        "fsync",
        settings["fsync"] == "on",
        ("on", "off: a crash of the machine may leave other data behind than WAL says"),
        "Set fsync = on and reload the server.",
    )
    yield _judged(
        "max_slot_wal_keep_size",
        settings["max_slot_wal_keep_size"] != "-1",
        (f"{settings['max_slot_wal_keep_size']} MB", "not set: while no receiver runs, a slot lets WAL fill the disk"),
        "Set max_slot_wal_keep_size to the space that the disk can spare; beyond it the slot is lost, and the chain of"
        " backups with it.",
    )
    names = settings["synchronous_standby_names"]
    yield _judged(
        "synchronous_standby_names",
        "*" not in names,
        (repr(names) if names else "empty", f"{names!r} has commits wait for any standby, and so for pgwal stream"),
        "Name the standbys, without pgwal; or run pgwal stream --synchronous, which reports each write at once.",
    )
    archives = settings["archive_mode"] != "off"
    yield _judged(
        "archiving",
        not (archives and condition.archiving_fails),
        (
            f"archive_mode is {settings['archive_mode']}; pgwal does without",
            "fails: the server keeps all WAL until it succeeds",
        ),
        "See pg_stat_archiver and the server's log.",
    )


def _judged(name: str, is_good: bool, messages: tuple[str, str], hint: str) -> Finding:
    if is_good:
        return Finding(name, Status.OK, messages[0])
    return Finding(name, Status.WARNING, messages[1], hint)
