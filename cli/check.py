"""``pgwal check``: what server and role lack for streaming and backups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgwal.repository.place import Place
from pgwal_cli import options
from pgwal_cli.exit_codes import FAILED
from pgwal_cli.output import print_json

if TYPE_CHECKING:
    from pgwal.engine.check import CheckReport
    from pgwal_cli.condition_documents import CheckDocument


@options.with_groups
def check(
    pgdata: options.Pgdata = None,
    slot: options.Slot = None,
    max_retained: options.MaxRetained = None,
    repo: Annotated[Place | None, options.RepoOption] = None,
    json: options.Json = False,
    *,
    connection: options.ConnectionOptions,
) -> None:
    """Check the server's settings and the role's privileges, before anything starts.

    Exit code 1 when something is lacking without which streaming or backups are not possible.
    """
    from pgwal.engine.check import CheckRequest, check_server

    if max_retained is not None and slot is None:
        raise typer.BadParameter("--max-retained needs --slot")
    report = connection.connecting(
        lambda connect_to: check_server(CheckRequest(connect_to, pgdata, slot, repo, max_retained))
    )
    if json:
        print_json(_document(report))
    else:
        _print_report(report)
    if report.is_lacking:
        raise typer.Exit(FAILED)


def _print_report(report: CheckReport) -> None:
    print(f"role {report.role}, database {report.database}")
    for finding in report.findings:
        print(f"{finding.status.value:<8} {finding.name}: {finding.message}")
        if finding.hint is not None:
            print(f"         {finding.hint}")


def _document(report: CheckReport) -> CheckDocument:
    return {
        "version": 1,
        "role": report.role,
        "database": report.database,
        "lacking": report.is_lacking,
        "findings": [
            {
                "name": finding.name,
                "status": finding.status.value,
                "message": finding.message,
                "hint": finding.hint,
            }
            for finding in report.findings
        ],
    }
