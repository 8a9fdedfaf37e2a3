"""``pgwal expire``: remove old backups, and the WAL that nothing needs any more."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgwal_cli import options
from pgwal_cli.output import print_json, size_text
from pgwal_cli.progress import progress_bar
from pgwal_cli.retention_options import RetentionOptions, decision_lines, why_document
from pgwal_cli.terminal import printable, terminal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pgwal.backup.pack_use import WornPack
    from pgwal.engine.expire_plan import ExpireReport
    from pgwal.repository.store import StoredObject
    from pgwal_cli.documents import ExpireDocument, StoredFileDocument, WornPackDocument

DEFAULT_MAX_REWRITE: Any = "1G"
"""As text, which the option reads."""


@options.with_groups
def expire(
    repo: options.Repo,
    rules: RetentionOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed, and what is kept by which rule.")
    ] = False,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Merge kept incremental backups into full ones where others are kept for them alone."
        ),
    ] = False,
    max_rewrite: Annotated[
        int,
        typer.Option(
            "--max-rewrite",
            parser=options.parse_size,
            metavar="SIZE",
            help="Most to rewrite of packs that are mostly unneeded, so that they can be removed; suffix M, G or T.",
        ),
    ] = DEFAULT_MAX_REWRITE,
    progress: options.Progress = False,
    json: options.Json = False,
) -> None:
    """Remove old backups, and the WAL and summaries that nothing needs any more.

    What any of the rules keeps is kept, with what it builds on. The newest chain, what a restore takes that is told
    nothing, and pinned backups are never removed.
    """
    given = rules.rules()
    if not (given.limits_backups or given.limits_wal):
        raise typer.BadParameter("say what to keep: --keep-full N, --keep-days D, --keep-daily N, and the like")
    from pgwal.engine.expire import ExpireRequest, expire

    with progress_bar("removing", progress) as on_progress:
        report = expire(ExpireRequest(repo, given, dry_run, merge, max_rewrite), on_progress)
    warn_of_unjudged(report)
    if json:
        print_json(_document(report, dry_run))
    else:
        _print(report, dry_run)


def warn_of_unjudged(report: ExpireReport) -> None:
    """Name what is left alone because it cannot be judged."""
    for backup in report.unreadable:
        print(
            f"pgwal: warning: backup {backup.backup_id} is left in place, with all that it may need: {backup.error}",
            file=sys.stderr,
        )
    for entry in report.broken:
        # Of one that builds on a damaged entry, the WAL behind that is kept.
        no_wal = "" if report.unreadable else ", and no WAL is kept for it"
        print(
            f"pgwal: warning: backup {entry.backup_id} cannot be restored because a backup it depends on is missing or"
            f" damaged; it is left in place{no_wal}",
            file=sys.stderr,
        )


def _print(report: ExpireReport, dry_run: bool) -> None:
    console = terminal() if dry_run else None
    if console is None:
        print("\n".join([*(decision_lines(report) if dry_run else []), *_lines(report, dry_run)]))
        return
    from pgwal_cli.decision_table import print_decision

    print_decision(console, report)
    console.print()
    for line in _lines(report, dry_run):
        console.print(printable(line))


def _lines(report: ExpireReport, dry_run: bool) -> list[str]:
    verb = "would remove" if dry_run else "removed"
    merged = "would merge" if dry_run else "merged"
    lines = [f"{merged} backup {entry.backup_id} into a full one" for entry in report.merged]
    lines += [f"{verb} backup {entry.backup_id}, {size_text(entry.repository_bytes)}" for entry in report.expired]
    lines += [f"{verb} the rest of {name}" for name in report.unfinished]
    if report.packs:
        lines.append(f"{verb} {len(report.packs)} packs, {size_text(sum(pack.size_bytes for pack in report.packs))}")
    lines += _rewriting_lines(report, dry_run)
    for what, files, size_bytes in (
        ("WAL files", report.wal, report.wal_bytes),
        ("summaries", report.summaries, report.summary_bytes),
    ):
        if files:
            lines.append(f"{verb} {len(files)} {what}, {size_text(size_bytes)}: {files[0].name} to {files[-1].name}")
    if not lines:
        lines = ["nothing to remove"]
    if report.wal_needed_from is None:
        return [*lines, "kept everything: there is no backup that can be restored"]
    own = f", {len(report.long_term)} of them with their own WAL alone" if report.long_term else ""
    return [*lines, f"kept {len(report.kept)} backups{own}, and WAL from {report.wal_needed_from} on"]


def _rewriting_lines(report: ExpireReport, dry_run: bool) -> list[str]:
    """Say which packs are rewritten, and why."""

    def text(packs: Sequence[WornPack]) -> str:
        sizes = size_text(sum(pack.size_bytes for pack in packs)), size_text(sum(pack.needed_bytes for pack in packs))
        return f"{len(packs)} packs, {sizes[0]}, less than a quarter of each is needed: {sizes[1]}"

    lines = []
    if report.rewritten:
        lines.append(f"{'would rewrite' if dry_run else 'rewrote'} {text(report.rewritten)}")
    if report.waiting:
        lines.append(f"left for the next run, for --max-rewrite is reached: {text(report.waiting)}")
    return lines


def _file_documents(files: Iterable[StoredObject]) -> list[StoredFileDocument]:
    return [{"name": file.name, "stored_bytes": file.size_bytes} for file in files]


def _pack_documents(packs: Sequence[WornPack]) -> list[WornPackDocument]:
    return [{"name": pack.name, "stored_bytes": pack.size_bytes, "needed_bytes": pack.needed_bytes} for pack in packs]


def _document(report: ExpireReport, dry_run: bool) -> ExpireDocument:
    return {
        "version": 1,
        "dry_run": dry_run,
        "expired_backups": [
            {"id": entry.backup_id, "stored_bytes": entry.repository_bytes} for entry in report.expired
        ],
        "kept_backups": [
            {"id": entry.backup_id, "why": why_document(report, entry.backup_id)} for entry in report.kept
        ],
        "merged_backups": [entry.backup_id for entry in report.merged],
        "long_term_backups": [entry.backup_id for entry in report.long_term],
        "broken_backups": [entry.backup_id for entry in report.broken],
        "unreadable_backups": [
            {"backup": backup.backup_id, "message": str(backup.error)} for backup in report.unreadable
        ],
        "unfinished_backups": report.unfinished,
        "kept_wal_lsn": None if report.wal_needed_from is None else str(report.wal_needed_from),
        "removed_packs": _file_documents(report.packs),
        "rewritten_packs": _pack_documents(report.rewritten),
        "waiting_packs": _pack_documents(report.waiting),
        "removed_wal": _file_documents(report.wal),
        "removed_summaries": _file_documents(report.summaries),
        "removed_bytes": report.backup_bytes + report.wal_bytes + report.summary_bytes,
    }
