"""What an audit looked at, and what it found, as text and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgwal_cli.output import size_text

if TYPE_CHECKING:
    from pgwal.engine.block_audit import AuditTally
    from pgwal.engine.missed_blocks import MissedBlock
    from pgwal.wal.page_magic import WalFormat


def tally_text(tally: AuditTally) -> str:
    """Say what was looked at."""
    sample = tally.sample
    return (
        f"{tally.block_count} of {tally.unchanged_block_count} unchanged blocks read ({sample.percent:g} %, seed"
        f" {sample.seed}), {size_text(tally.bytes_read)}; {tally.newer_block_count} of them changed meanwhile"
    )


def tally_document(tally: AuditTally) -> dict[str, object]:
    """Return the same as JSON takes it."""
    return {
        "percent": tally.sample.percent,
        "seed": tally.sample.seed,
        "unchanged_blocks": tally.unchanged_block_count,
        "blocks_read": tally.block_count,
        "bytes_read": tally.bytes_read,
        "newer_blocks": tally.newer_block_count,
        "missed_blocks": tally.missed_count,
    }


def missed_document(block: MissedBlock, wal_format: WalFormat) -> dict[str, object]:
    """Return a missed block, and the record that it was changed by, as JSON takes them."""
    from pgwal.wal.describe import record_document

    return {
        "path": block.path,
        "tablespace": block.locator.spc_oid,
        "database": block.locator.db_oid,
        "relation": block.locator.rel_number,
        "fork": block.fork.name.lower(),
        "block": block.block_no,
        "page_lsn": str(block.page_lsn),
        "timeline": block.timeline_id,
        "is_damaged": block.is_damaged,
        "wal_is_archived": block.has_wal,
        "record_names_block": block.is_named,
        "record": None if block.record is None else record_document(wal_format, block.record),
    }
