"""The files that ``verify --report FILE`` leaves: FILE with JSON, and beside it the same as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pgwal_cli.output import size_text
from pgwal_cli.report_file import require_writable, write_whole
from pgwal_cli.verification_report import VerificationRecord, report_document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgwal_cli.restore_documents import (
        AskedDocument,
        CheckedDocument,
        ReplayedDocument,
        RestoredDocument,
        VerificationReportDocument,
        VerifiedDocument,
    )


class ReportFile:
    """Where a report goes; both files are whole when they are there, and the text is there first."""

    def __init__(self, path: Path) -> None:
        """Raise TargetError for a place where nothing can be written: it is known before a verification of hours."""
        self.path = path.absolute()
        self.text_path = self.path.with_suffix(".txt") if self.path.suffix == ".json" else Path(f"{self.path}.txt")
        for path in (self.path, self.text_path):
            require_writable(path)

    def write(self, record: VerificationRecord) -> None:
        """Write the record of a verification that has ended, in place of an older one; raises TargetError."""
        document = report_document(record)
        write_whole(self.text_path, report_text(document))
        write_whole(self.path, json.dumps(document, indent=2) + "\n")


def report_text(document: VerificationReportDocument) -> str:
    """Return a report for people to read, with all that its JSON document says."""
    asked = document["asked"]
    lines = [
        f"pgwal verification report: {document['verdict'].upper()}",
        "",
        f"made by            pgwal {document['pgwal_version']} on {document['host']}, as {document['user']}",
        f"from               {document['started_at']} to {document['finished_at']}, {document['seconds']} s",
        f"repository         {document['repository']}",
        f"system identifier  {document['system_identifier']}",
        f"PostgreSQL         {document['major']}",
        f"asked for          {asked['backup'] or 'all backups'}{_target_text(asked)}",
    ]
    if document["failure"] is not None:
        lines += ["", f"It FAILED: {document['failure']['kind']}: {document['failure']['message']}"]
    verified, restored, replayed, checked = (
        document["verified"],
        document["restored"],
        document["replayed"],
        document["checked"],
    )
    lines += _part("Verified", ["nothing"] if verified is None else _verified_lines(verified))
    lines += _part("Restored", ["nothing"] if restored is None else _restored_lines(restored))
    lines += _part("Replayed", ["nothing"] if replayed is None else _replayed_lines(replayed))
    lines += _part("Checked", ["nothing"] if checked is None else _checked_lines(checked))
    lines += ["", "Problems", *(f"  {problem}" for problem in document["messages"] or ["none"])]
    return "\n".join(lines) + "\n"


def _part(title: str, lines: Sequence[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in lines)]


def _target_text(asked: AskedDocument) -> str:
    if not asked["restore"]:
        return ", without a trial restore"
    settings = ", ".join(f"{name} = {value}" for name, value in (asked["recovery"] or {}).items())
    return f", with a trial restore to {settings or 'the end of WAL'}"


def _verified_lines(verified: VerifiedDocument) -> list[str]:
    lines = []
    for backup in verified["backups"]:
        if "kind" not in backup:
            lines.append(f"{backup['id']}: its entry cannot be read")
            continue
        lines += [
            f"{backup['id']}: {backup['kind']}{', since ' + backup['prior'] if backup['prior'] else ''},"
            f" {backup['start_lsn']} (timeline {backup['timeline']}) to {backup['stop_lsn']}"
            f" (timeline {backup['stop_timeline']}), ended {backup['finished_at']}",
            f"  {backup['file_count']} files, {size_text(backup['stored_bytes'])} stored, page checksums"
            f" {'on' if backup['data_checksums'] else 'off'}; SHA-256 of its entry {backup['entry_sha256']}",
        ]
    lines += [
        f"WAL of timeline {part['timeline']} from {part['start_lsn']} to {part['end_lsn']}"
        for part in verified["wal_ranges"]
    ]
    opened = "" if verified["opens_files"] else ", of what is encrypted alone"
    lines.append(
        f"{size_text(verified['read_bytes'])} read, held against digests ({verified['file_digests']}){opened};"
        f" {verified['problem_count']} problems; {verified['seconds']} s"
    )
    return lines


def _restored_lines(restored: RestoredDocument) -> list[str]:
    return [
        f"{restored['backup']}, from {restored['backup_count']} backups: {restored['file_count']} files,"
        f" {size_text(restored['written_bytes'])} written; {restored['seconds']} s"
    ]


def _replayed_lines(replayed: ReplayedDocument) -> list[str]:
    expected = replayed["expected"]
    lines = [
        f"expected: {expected['wal_bytes']} bytes of WAL in {expected['segment_count']} segments,"
        f" from {expected['start_lsn']} to {expected['end_lsn']} of timeline {expected['timeline']}; last transaction"
        f" {expected['last_transaction_at']}",
        f"reached:  {replayed['replayed_lsn']}; last transaction {replayed['last_transaction_at']}",
        f"by PostgreSQL {replayed['server_version']}; {replayed['seconds']} s",
    ]
    if replayed["stopped_before_tablespace"] is not None:
        lines.append(f"It was ended before WAL creates {replayed['stopped_before_tablespace']}.")
    return lines


def _checked_lines(checked: CheckedDocument) -> list[str]:
    lines = [
        f"database {each['database']}: {each['table_count']} tables, {each['index_count']} indexes,"
        f" {len(each['messages'])} problems"
        + (f", not checked: {', '.join(each['unchecked_indexes'])}" if each["unchecked_indexes"] else "")
        + f"; {each['seconds']} s"
        for each in checked["databases"]
    ]
    lines.append(
        f"{checked['table_count']} tables and {checked['index_count']} indexes by {checked['by']};"
        f" {checked['seconds']} s"
    )
    return lines
