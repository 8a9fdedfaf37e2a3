"""Daily backups of a real server for a year, by rules for days, weeks and months: repositories have a bounded size.

By default for some weeks, with rules for these; PGWAL_LARGE_TESTS=1 plays the year.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fix_servers import ServerFactory
from keeping.simulated_year import GFS, Kept, SimulatedYear, Sizes

from pgwal.backup.retention_rules import Period
from pgwal.budget import WORN_SHARE
from pgwal.engine.combine import CombineRequest, combine_backups
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.repository.repository import Repository

IS_LONG = "PGWAL_LARGE_TESTS" in os.environ


@pytest.mark.postgres(18)
def test_the_size_of_repositories_is_bounded(make_server: ServerFactory, scratch: Path) -> None:
    settings = {"autovacuum": False, "wal_keep_size": "256MB"}
    server = make_server(initdb_args=("-k", "--wal-segsize=1"), settings=settings)
    periods = GFS if IS_LONG else {Period.DAILY: 2, Period.WEEKLY: 1}
    year = SimulatedYear(server, scratch, periods)
    sizes = list(year.play(365 if IS_LONG else 12))
    for kept, found in ((year.chains, [each[0] for each in sizes]), (year.merged, [each[1] for each in sizes])):
        check_sizes(found, sum(periods.values()) + 1, kept)
        check_whole(kept, scratch)


def check_sizes(sizes: list[Sizes], most_backups: int, kept: Kept) -> None:
    first = sizes[0].total
    for day, found in enumerate(sizes):
        # What is worn is rewritten at once, for there is little of it.
        assert found.packs <= WORN_SHARE * found.needed, (day, found)
        if kept.merge:
            assert found.backups <= most_backups, (day, found)
            assert found.packs <= 2 * found.needed, (day, found)
        # Whatever is kept, no more of it than so many full ones.
        assert found.total <= first * (2 + most_backups), (day, found)
    if IS_LONG:
        # Once the rules for days and weeks have all they want, it grows by the months that are kept alone.
        later = sizes[45:]
        growth = (sizes[-1].total - later[0].total) / len(later) * 365
        assert growth < first * most_backups


def check_whole(kept: Kept, scratch: Path) -> None:
    report = verify(VerifyRequest(kept.place))
    assert report.problems == []
    for entry in Repository.open(kept.place).catalogue.entries():
        combine_backups(CombineRequest(kept.place, entry.backup_id, scratch / "combined"))
        shutil.rmtree(scratch / "combined")
