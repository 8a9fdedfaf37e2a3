"""What an audit looked at, and what it found, as text and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pgwal_cli.output import size_text

if TYPE_CHECKING:
    from pgwal.engine.block_audit import AuditTally
    from pgwal.engine.missed_blocks import MissedBlock
    from pgwal.wal.page_magic import WalFormat
    from pgwal_cli.documents import TallyDocument
    from pgwal_cli.wal_documents import MissedBlockDocument, RecordMembers


def tally_text(tally: AuditTally) -> str:
    """Say what was looked at."""
    sample = tally.sample
    return (
        f"{tally.block_count} of {tally.unchanged_block_count} unchanged blocks read ({sample.percent:g} %, seed"
        f" {sample.seed}), {size_text(tally.bytes_read)}; {tally.newer_block_count} of them changed meanwhile"
    )


def tally_document(tally: AuditTally) -> TallyDocument:
    """Return the same as JSON takes it."""
    return {
        "percent": tally.sample.percent,
        "seed": tally.sample.seed,
        "unchanged_block_count": tally.unchanged_block_count,
        "read_block_count": tally.block_count,
        "read_bytes": tally.bytes_read,
        "newer_block_count": tally.newer_block_count,
        "missed_block_count": tally.missed_count,
    }


def missed_document(block: MissedBlock, wal_format: WalFormat) -> MissedBlockDocument:
    """Return a missed block, and the record that it was changed by, as JSON takes them."""
    from pgwal.wal.describe import record_document

    return {
        "path": block.path,
        "tablespace_oid": block.locator.spc_oid,
        "database_oid": block.locator.db_oid,
        "relation_number": block.locator.rel_number,
        "fork": block.fork.name.lower(),
        "block_no": block.block_no,
        "page_lsn": str(block.page_lsn),
        "timeline": block.timeline_id,
        "damaged": block.is_damaged,
        "wal_archived": block.has_wal,
        "wal_encrypted": block.needs_identity,
        "named_by_record": block.is_named,
        "record": None if block.record is None else cast("RecordMembers", record_document(wal_format, block.record)),
    }
