"""What ``--dry-run`` of a backup prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgwal_cli.output import print_json, range_documents, size_text, table_lines

if TYPE_CHECKING:
    from pgwal.engine.forecast import Forecast, RelationForecast
    from pgwal_cli.documents import BackupForecastDocument


def print_forecast(forecast: Forecast, as_json: bool) -> None:
    """Print what a backup would copy."""
    if as_json:
        print_json(_document(forecast))
        return
    print("\n".join(_lines(forecast)))


def _lines(forecast: Forecast) -> list[str]:
    rows = [
        (_name(relation), str(relation.block_count), size_text(relation.size_bytes)) for relation in forecast.relations
    ]
    lines = table_lines(("relation", "blocks", "size"), rows) if rows else []
    lines.append(f"{forecast.other_file_count} other files, whole: {size_text(forecast.other_size_bytes)}")
    lines.append(
        f"in all {forecast.block_count} blocks, {size_text(forecast.size_bytes)} of"
        f" {size_text(forecast.total_size_bytes)}"
    )
    if forecast.prior is None:
        return [*lines, "This would be a full backup."]
    ranges = ", ".join(str(part) for part in forecast.window)
    lines.append(f"This would build on {forecast.prior.backup_id}; the changes are those of {ranges}.")
    unread = forecast.server_lsn - forecast.window[-1].end
    if unread > 0:
        lines.append(
            f"The server is at {forecast.server_lsn}: {size_text(unread)} of WAL are not received, nor counted."
        )
    return lines


def _name(relation: RelationForecast) -> str:
    if relation.name is not None:
        return relation.name
    return relation.path if relation.database is None else f"{relation.database}: {relation.path}"


def _document(forecast: Forecast) -> BackupForecastDocument:
    return {
        "version": 1,
        "kind": "full" if forecast.prior is None else "incremental",
        "prior": None if forecast.prior is None else forecast.prior.backup_id,
        "window": range_documents(forecast.window),
        "server_lsn": str(forecast.server_lsn),
        "relations": [
            {
                "relation": relation.name,
                "database": relation.database,
                "path": relation.path,
                "block_count": relation.block_count,
                "size_bytes": relation.size_bytes,
            }
            for relation in forecast.relations
        ],
        "other_file_count": forecast.other_file_count,
        "other_bytes": forecast.other_size_bytes,
        "block_count": forecast.block_count,
        "size_bytes": forecast.size_bytes,
        "cluster_bytes": forecast.total_size_bytes,
    }
