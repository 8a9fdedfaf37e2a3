"""The checksums that a backup's manifest has of the files that the backup stores whole, to look up by path."""

from __future__ import annotations

from xxhash import xxh3_128_digest

from pgwal.backup.entry import BackupEntry
from pgwal.backup.incremental_file import is_incremental_name
from pgwal.backup.manifest import CHECKSUM_HEX_LENGTHS, MANIFEST_NAME
from pgwal.backup.manifest_reader import ManifestReader
from pgwal.backup.record_table import RecordTable
from pgwal.backup.stored_path import encode_path
from pgwal.engine.chain_source import ANOTHER_BACKUP, of_chain
from pgwal.errors import FormatError, WrongCluster
from pgwal.repository.backup_data import BackupData, chunks_of


class ManifestChecksums:
    """Reads a manifest, whose own checksum proves it, and keeps some 20 to 80 bytes a file."""

    def __init__(self, data: BackupData, entry: BackupEntry) -> None:
        """Raises FormatError, WrongCluster for the manifest of another cluster, MissingPriorBackup where there is none.

        ``algorithm`` is that of the first file: all have the same, in a manifest that a server or pgwal has written.
        """
        self._data = data
        self._tables: dict[str, RecordTable] = {}
        self.algorithm = "NONE"
        reader = ManifestReader()
        is_first = True
        with of_chain(data, MANIFEST_NAME):
            for chunk in chunks_of(data, MANIFEST_NAME):
                for file in reader.feed(chunk):
                    if is_first:
                        self.algorithm, is_first = file.checksum_algorithm, False
                    if not is_incremental_name(file.path):
                        self._add(file.path, file.checksum_algorithm, file.checksum_hex)
        end = reader.finish()
        if end.system_identifier not in (None, entry.system_identifier):
            raise WrongCluster(
                f"{data.locate(MANIFEST_NAME)} is of the cluster with system identifier {end.system_identifier}, the"
                f" backup's is {entry.system_identifier}",
                hint="Somebody has exchanged files of this backup: verify it.",
            )

    def _add(self, path: str, algorithm: str, checksum_hex: str | None) -> None:
        form = f"<{CHECKSUM_HEX_LENGTHS[algorithm] // 2}s"
        table = self._tables.setdefault(algorithm, RecordTable(form))
        table.add(xxh3_128_digest(encode_path(path)), bytes.fromhex(checksum_hex or ""))

    def of(self, path: str) -> tuple[str, str | None]:
        """Return the algorithm and the checksum of a file; raises FormatError for one that the manifest lacks."""
        key = xxh3_128_digest(encode_path(path))
        for algorithm, table in self._tables.items():
            if (found := table.find(key)) is not None:
                return algorithm, found[0].hex() or None
        raise FormatError(
            f"{self._data.locate(MANIFEST_NAME)} does not list {path}",
            hint=ANOTHER_BACKUP,
            backup_id=self._data.backup_id,
        )
