"""``pgwal report``: how a repository, its receiver and its server stand, as one page with pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgwal_cli import options

if TYPE_CHECKING:
    from pgwal.postgres.connection import ConnectionParameters
    from pgwal.report.document import Document

Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="The HTML file; replaced if it is there.", readable=False)
]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Show nothing in pictures and tables that ended before this time."),
]


@options.with_groups
def report(
    repo: options.Repo,
    output: Output,
    since: Since = None,
    slot: options.Slot = None,
    *,
    connection: options.ConnectionOptions,
) -> None:
    """Write one HTML page: findings, recovery windows, coverage, churn, backups, forecast, lag and slot.

    The file is whole in itself, and a browser asks for nothing to show it.  A server that is not reached is a finding.
    """
    from pgwal.backup.recovery import parse_target_time
    from pgwal.engine.report import ReportRequest, read_report
    from pgwal.errors import PasswordRequired
    from pgwal.repository.repository import Repository
    from pgwal_cli.report_file import require_writable, write_whole
    from pgwal_cli.report_page import page_of

    path = output.absolute()
    since_s = None if since is None else parse_target_time(since).timestamp()
    require_writable(path)
    repository = Repository.open(repo)

    request = ReportRequest(repository, slot=slot, since_s=since_s)

    def read(connect_to: ConnectionParameters) -> Document:
        return read_report(request._replace(parameters=connect_to))

    try:
        document = connection.connecting(read)
    except PasswordRequired as error:
        # Nobody was there to ask.
        document = read_report(request._replace(server_problem=str(error)))
    write_whole(path, "".join(page_of(document)))
    problem = document.problems.get("server")
    if problem is not None:
        print(f"pgwal: warning: the report is without the server: {problem}", file=sys.stderr)
    counts = {word: sum(each.severity == word for each in document.findings) for word in ("critical", "warning")}
    print(f"{path}: {counts['critical']} critical findings, {counts['warning']} warnings")
