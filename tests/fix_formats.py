"""Fixtures: repositories of each format in which files of backups are stored.

A test that uses ``storage_format``, by itself or through another fixture, runs once for each format.  One with a server
does so on the majors of PACKED_MAJORS, on the others with plain files alone, unless it has the mark ``packed_on_all``.
One with the mark ``only_format``, for what it does to stored files where they lie, runs with that format alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pgwal.engine.initialise import initialise
from pgwal.repository.compression import Compression
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.storage_format import PLAIN_FORMAT, FileFormat, StorageFormat

PACKED_MAJORS = (13, 18)
PACKED_FORMAT = StorageFormat(FileFormat.PACKED, Compression.parse("zstd:1"))


def new_repository(path: Path, storage_format: StorageFormat) -> Path:
    """Have a repository begin with a format, and return its path; one of plain files begins with its first use."""
    if storage_format.files is FileFormat.PACKED:
        initialise(LocalPlace(path), storage_format)
    return path


@pytest.fixture(scope="session")
def storage_format(request: pytest.FixtureRequest) -> StorageFormat:
    """The format that this instance of the test is for."""
    return PACKED_FORMAT if request.param is FileFormat.PACKED else PLAIN_FORMAT


@pytest.fixture
def repo(scratch: Path, storage_format: StorageFormat) -> Path:
    """Where a repository of this format is, or will be."""
    return new_repository(scratch / "repo", storage_format)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make an instance of a test without a server for each format; of others, ``fix_servers`` makes them."""
    if "storage_format" in metafunc.fixturenames and "installation" not in metafunc.fixturenames:
        metafunc.parametrize("storage_format", formats_of(metafunc.definition), indirect=True)


def formats_of(test: pytest.Item, major: int | None = None) -> tuple[FileFormat, ...]:
    """Return the formats in which a test runs, on a server of a major version, if it has one."""
    mark = test.get_closest_marker("only_format")
    formats = tuple(FileFormat) if mark is None else tuple(map(FileFormat, mark.args))
    if major is None or major in PACKED_MAJORS or test.get_closest_marker("packed_on_all"):
        return formats
    return tuple(files for files in formats if files is FileFormat.PLAIN)
