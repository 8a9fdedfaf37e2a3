"""What a role must be allowed to do for pgwal, what of it is missing, and the SQL that grants it.

A superuser may do all of it.  Source of the functions' default privileges: src/backend/catalog/system_functions.sql
(13: system_views.sql), PostgreSQL 13 to 19.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import psycopg

from pgwal.errors import PrivilegeMissing
from pgwal.postgres.connection import translated_errors
from pgwal.postgres.identifier import quoted_identifier

FILE_FUNCTIONS = (
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
)
"""The functions that list and read the data directory, as GRANT EXECUTE ON FUNCTION names them."""


class RoleRights(NamedTuple):
    """What a role may do in one database; all but ``exists`` is False for a role that is not there."""

    name: str
    database: str
    exists: bool
    can_login: bool
    can_connect: bool
    can_replicate: bool
    missing_functions: tuple[str, ...]
    """Those of the functions asked for that it may not execute."""


_ROLE = """
    SELECT rolcanlogin, has_database_privilege(oid, current_database(), 'CONNECT'), rolreplication OR rolsuper
      FROM pg_roles WHERE rolname = %s
"""
_MISSING = """
    SELECT signature
      FROM unnest(%(signatures)s::text[]) WITH ORDINALITY AS wanted (signature, no)
     WHERE NOT has_function_privilege(%(role)s, 'pg_catalog.' || signature, 'EXECUTE')
     ORDER BY no
"""


def read_role_rights(connection: psycopg.Connection, role: str, signatures: Sequence[str]) -> RoleRights:
    """Return what a role may do in the database of the connection; any role may ask."""
    database = connection.info.dbname
    with translated_errors(connection):
        row = connection.execute(_ROLE, (role,)).fetchone()
        if row is None:
            return RoleRights(role, database, False, False, False, False, tuple(signatures))
        missing = _missing_functions(connection, role, signatures)
    can_login, can_connect, can_replicate = row
    return RoleRights(role, database, True, can_login, can_connect, can_replicate, missing)


def require_functions(connection: psycopg.Connection, signatures: Sequence[str]) -> None:
    """Raise PrivilegeMissing, with the SQL that helps, when the connected role may not execute one of the functions."""
    with translated_errors(connection):
        row = connection.execute("SELECT current_user").fetchone()
        assert row is not None
        missing = _missing_functions(connection, row[0], signatures)
    if missing:
        names = ", ".join(signature.partition("(")[0] for signature in missing)
        raise PrivilegeMissing(
            # The server's own words.
            f"permission denied for function {names}",
            hint=grant_hint(connection.info.dbname, row[0], missing),
        )


def _missing_functions(connection: psycopg.Connection, role: str, signatures: Sequence[str]) -> tuple[str, ...]:
    rows = connection.execute(_MISSING, {"role": role, "signatures": list(signatures)}).fetchall()
    return tuple(signature for (signature,) in rows)


# ---- the SQL ----


def grant_hint(database: str, role: str, signatures: Sequence[str]) -> str:
    # Function privileges are kept per database.
    return f"A superuser can run, in database {quoted_identifier(database)}: {grant_execute(role, signatures)}"


def grant_execute(role: str, signatures: Sequence[str]) -> str:
    functions = ", ".join(f"pg_catalog.{signature}" for signature in signatures)
    return f"GRANT EXECUTE ON FUNCTION {functions} TO {quoted_identifier(role)};"


def grant_replication(role: str) -> str:
    return f"ALTER ROLE {quoted_identifier(role)} REPLICATION;"


def missing_grants(rights: RoleRights) -> list[str]:
    """Return the SQL that gives a role what it lacks, to be run in the database of ``rights`` by a superuser."""
    role = quoted_identifier(rights.name)
    statements = []
    if not rights.exists:
        statements.append(f"CREATE ROLE {role} LOGIN REPLICATION;")
    else:
        if not rights.can_login:
            statements.append(f"ALTER ROLE {role} LOGIN;")
        if not rights.can_replicate:
            statements.append(grant_replication(rights.name))
    if rights.exists and not rights.can_connect:
        statements.append(f"GRANT CONNECT ON DATABASE {quoted_identifier(rights.database)} TO {role};")
    if rights.missing_functions:
        statements.append(grant_execute(rights.name, rights.missing_functions))
    return statements
