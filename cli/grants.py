"""``pgwal grants``: the SQL that gives a role what it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgwal_cli import options
from pgwal_cli.output import print_json

if TYPE_CHECKING:
    from pgwal_cli.documents import GrantsDocument


def parse_role(name: str) -> str:
    """Read the name of a role; raises the usage error of an empty one, which no role has."""
    if not name:
        raise typer.BadParameter("a role has a name")
    return name


@options.with_groups
def grants(
    role: Annotated[
        str, typer.Option("--role", parser=parse_role, metavar="NAME", help="The role that pgwal connects as.")
    ],
    json: options.Json = False,
    *,
    connection: options.ConnectionOptions,
) -> None:
    """Print the SQL that gives a role what it lacks to stream and to take backups over SQL; run nothing.

    It is for a superuser, in the database connected to; nothing but a comment when nothing is missing.
    """
    from pgwal.postgres.connection import ConnectionParameters, connect_sql, one_line
    from pgwal.postgres.identifier import quoted_identifier
    from pgwal.postgres.privileges import FILE_FUNCTIONS, missing_grants, read_role_rights
    from pgwal.postgres.server import backup_function_signatures

    def missing(connect_to: ConnectionParameters) -> tuple[str, list[str]]:
        with connect_sql(connect_to) as session:
            signatures = (*backup_function_signatures(session.info.server_version), *FILE_FUNCTIONS)
            return session.info.dbname, missing_grants(read_role_rights(session, role, signatures))

    database, statements = connection.connecting(missing)
    if json:
        document: GrantsDocument = {"version": 1, "role": role, "database": database, "statements": statements}
        print_json(document)
        return
    # In one line, or what follows would be taken for SQL.
    where = one_line(f"in database {quoted_identifier(database)}")
    print(f"-- as a superuser, {where}:" if statements else f"-- nothing is missing {where}")
    for statement in statements:
        print(statement)
