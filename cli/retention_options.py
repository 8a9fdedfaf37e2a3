"""The rules of retention as options, and how what they keep is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from pgwal_cli.output import table_lines

if TYPE_CHECKING:
    from pgwal.backup.retention_rules import RetentionRules
    from pgwal.engine.expire_plan import ExpireReport
    from pgwal_cli.documents import ReasonDocument

_MOST_DAYS = 36500


def _count(spelling: str, help_text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(spelling, min=1, metavar="N", help=help_text)
    return option


@dataclass(frozen=True, slots=True)
class RetentionOptions:
    """What is to be kept."""

    keep_full: Annotated[int | None, _count("--keep-full", "Keep the N newest chains.")] = None
    keep_days: Annotated[
        int | None,
        typer.Option(
            "--keep-days",
            min=1,
            max=_MOST_DAYS,
            metavar="D",
            help="Keep backups for every point of the last D days.",
        ),
    ] = None
    keep_hourly: Annotated[int | None, _count("--keep-hourly", "Keep the newest backup of each of N hours.")] = None
    keep_daily: Annotated[int | None, _count("--keep-daily", "Keep the newest backup of each of N days.")] = None
    keep_weekly: Annotated[int | None, _count("--keep-weekly", "Keep the newest backup of each of N weeks.")] = None
    keep_monthly: Annotated[int | None, _count("--keep-monthly", "Keep the newest backup of each of N months.")] = None
    keep_yearly: Annotated[int | None, _count("--keep-yearly", "Keep the newest backup of each of N years.")] = None
    keep_wal_days: Annotated[
        int | None,
        typer.Option(
            "--keep-wal-days", min=1, max=_MOST_DAYS, metavar="D", help="Keep all WAL of the last D days, and no older."
        ),
    ] = None
    keep_wal_for: Annotated[
        int | None, _count("--keep-wal-for", "Keep all WAL since the Nth newest backup kept started, and no older.")
    ] = None

    def rules(self) -> RetentionRules:
        """Return what was given; days are those before now."""
        from datetime import UTC, datetime, timedelta

        from pgwal.backup.retention_rules import Period, RetentionRules

        now = datetime.now(UTC)

        def days_ago(days: int | None) -> datetime | None:
            return None if days is None else now - timedelta(days=days)

        counts = {
            Period.HOURLY: self.keep_hourly,
            Period.DAILY: self.keep_daily,
            Period.WEEKLY: self.keep_weekly,
            Period.MONTHLY: self.keep_monthly,
            Period.YEARLY: self.keep_yearly,
        }
        return RetentionRules(
            self.keep_full,
            days_ago(self.keep_days),
            {period: count for period, count in counts.items() if count is not None},
            days_ago(self.keep_wal_days),
            self.keep_wal_for,
        )


def decision_lines(report: ExpireReport) -> list[str]:
    """Return a table of all backups: kept or not, by which rules, and with which WAL."""
    long_term_ids = {entry.backup_id for entry in report.long_term}
    rows = []
    for entry in sorted((*report.kept, *report.expired, *report.broken), key=lambda entry: entry.backup_id):
        backup_id = entry.backup_id
        if entry in report.kept:
            wal = f"up to {entry.stop_lsn}" if backup_id in long_term_ids else "all since"
            rows.append((backup_id, entry.finished_at, "yes", why_text(report, backup_id), wal))
        elif entry in report.broken:
            rows.append((backup_id, entry.finished_at, "yes", "broken: left to a person", "none"))
        else:
            rows.append((backup_id, entry.finished_at, "no", "-", "-"))
    rows += [(backup.backup_id, "-", "yes", "its entry cannot be read", "all since") for backup in report.unreadable]
    return table_lines(("BACKUP", "FINISHED", "KEPT", "BY (HOURS TO YEARS ARE OF UTC)", "WAL"), rows)


def why_text(report: ExpireReport, backup_id: str) -> str:
    """Return which rules keep a backup."""
    return ", ".join(map(str, report.reasons.get(backup_id, ()))) or "-"


def why_document(report: ExpireReport, backup_id: str) -> list[ReasonDocument]:
    """Return the same for programs."""
    return [{"rule": rule, "detail": detail} for rule, detail in report.reasons.get(backup_id, ())]
