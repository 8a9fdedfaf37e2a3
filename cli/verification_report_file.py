"""The files that ``verify --report FILE`` leaves: FILE with JSON, and beside it the same as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pgwal_cli.output import size_text
from pgwal_cli.report_file import require_writable, write_whole
from pgwal_cli.verification_report import VerificationRecord, report_document


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


def report_text(document: dict[str, Any]) -> str:
    """Return a report for people to read, with all that its JSON document says."""
    repository, asked = document["repository"], document["asked"]
    lines = [
        f"pgwal verification report: {document['verdict'].upper()}",
        "",
        f"made by            pgwal {document['pgwal_version']} on {document['host']}, as {document['user']}",
        f"from               {document['started']} to {document['finished']}, {document['seconds']} s",
        f"repository         {repository['address']}",
        f"system identifier  {repository['system_identifier']}",
        f"PostgreSQL         {repository['postgresql']}",
        f"asked for          {asked['backup'] or 'all backups'}{_target_text(asked)}",
    ]
    if document["failure"] is not None:
        lines += ["", f"It FAILED: {document['failure']['kind']}: {document['failure']['message']}"]
    for title, part, write in (
        ("Verified", document["verified"], _verified_lines),
        ("Restored", document["restored"], _restored_lines),
        ("Replayed", document["replayed"], _replayed_lines),
        ("Checked", document["checked"], _checked_lines),
    ):
        lines += ["", title, *(f"  {line}" for line in (["nothing"] if part is None else write(part)))]
    lines += ["", "Problems", *(f"  {problem}" for problem in document["problems"] or ["none"])]
    return "\n".join(lines) + "\n"


def _target_text(asked: dict[str, Any]) -> str:
    if not asked["restore"]:
        return ", without a trial restore"
    settings = ", ".join(f"{name} = {value}" for name, value in asked["target"].items())
    return f", with a trial restore to {settings or 'the end of WAL'}"


def _verified_lines(verified: dict[str, Any]) -> list[str]:
    lines = []
    for backup in verified["backups"]:
        if "kind" not in backup:
            lines.append(f"{backup['id']}: its entry cannot be read")
            continue
        lines += [
            f"{backup['id']}: {backup['kind']}{', since ' + backup['prior'] if backup['prior'] else ''},"
            f" {backup['start_lsn']} (timeline {backup['start_timeline']}) to {backup['stop_lsn']}"
            f" (timeline {backup['stop_timeline']}), ended {backup['finished']}",
            f"  {backup['files']} files, {size_text(backup['stored_bytes'])} stored, page checksums"
            f" {'on' if backup['data_checksums'] else 'off'}; SHA-256 of its entry {backup['entry_sha256']}",
        ]
    lines += [f"WAL of timeline {part['timeline']} from {part['start']} to {part['end']}" for part in verified["wal"]]
    opened = "" if verified["opens_files"] else ", of what is encrypted alone"
    lines.append(
        f"{size_text(verified['bytes_read'])} read, held against digests ({verified['file_digests']}){opened};"
        f" {verified['problems']} problems; {verified['seconds']} s"
    )
    return lines


def _restored_lines(restored: dict[str, Any]) -> list[str]:
    return [
        f"{restored['backup']}, from {restored['chain_length']} backups: {restored['files']} files,"
        f" {size_text(restored['bytes_written'])} written; {restored['seconds']} s"
    ]


def _replayed_lines(replayed: dict[str, Any]) -> list[str]:
    expected = replayed["expected"]
    lines = [
        f"expected: {expected['bytes']} bytes of WAL in {expected['segments']} segments, from {expected['start_lsn']}"
        f" to {expected['end_lsn']} of timeline {expected['timeline']}; last transaction"
        f" {expected['last_transaction']}",
        f"reached:  {replayed['replayed_lsn']}; last transaction {replayed['last_transaction']}",
        f"by PostgreSQL {replayed['server']}; {replayed['seconds']} s",
    ]
    if replayed["stopped_before_tablespace"] is not None:
        lines.append(f"It was ended before WAL creates {replayed['stopped_before_tablespace']}.")
    return lines


def _checked_lines(checked: dict[str, Any]) -> list[str]:
    lines = [
        f"database {each['name']}: {each['tables']} tables, {each['indexes']} indexes, {len(each['problems'])} problems"
        + (f", not checked: {', '.join(each['unchecked_indexes'])}" if each["unchecked_indexes"] else "")
        + f"; {each['seconds']} s"
        for each in checked["databases"]
    ]
    lines.append(
        f"{checked['tables']} tables and {checked['indexes']} indexes by {checked['by']}; {checked['seconds']} s"
    )
    return lines
