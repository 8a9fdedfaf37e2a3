"""``pgwal report`` on the repository of a real server in which much has gone wrong."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_servers import ServerFactory, Templates, find_installation
from keeping.stored_repository import build_chains
from pgwal_process import assert_failed, run_pgwal, succeed
from report.chromium import chromium, opened
from report.reported_repository import TABLES, Reported, build_reported

from pgwal.engine.report import ReportRequest, read_report
from pgwal.postgres.connection import ConnectionParameters
from pgwal.report.document import Document
from pgwal.repository.repository import Repository
from pgwal_cli.server_account import append_as_server

SETS_OF_ROUNDS = [1, 12] if "PGWAL_LARGE_TESTS" in os.environ else [1]


@pytest.fixture(scope="module", params=SETS_OF_ROUNDS, ids=lambda rounds: f"{rounds} rounds")
def reported(request: pytest.FixtureRequest, module_scratch: Path) -> Iterator[Reported]:
    """The repository, and its server, which runs on."""
    found = find_installation(18)
    assert found.installation is not None, found.origin
    templates = Templates(module_scratch / f"templates{request.param}")
    with ServerFactory(found.installation, templates, module_scratch / f"servers{request.param}") as make_server:
        server = make_server(initdb_args=("--wal-segsize=1",))
        yield build_reported(server, module_scratch / f"repo{request.param}", request.param)


def read(reported: Reported, *, with_server: bool = True) -> Document:
    parameters = ConnectionParameters.from_options(reported.server.conninfo) if with_server else None
    return read_report(ReportRequest(Repository.open(reported.repo), parameters))


def findings(document: Document) -> dict[str, tuple[str, str]]:
    return {finding.subject: (finding.severity, finding.message) for finding in document.findings}


def test_findings_name_what_is_wrong_and_the_worst_comes_first(reported: Reported) -> None:
    document, ids = read(reported), reported.ids
    found = findings(document)
    order = [finding.severity for finding in document.findings]
    assert order == sorted(order, key=["critical", "warning", "notice", "ok"].index)
    assert found[f"backup {ids['unreadable']}"][0] == "critical"
    assert found["unfinished backups"] == ("warning", f"these were not finished: {ids['unfinished']}")
    assert found["pinned backups"] == ("notice", f"these never expire: {ids['pinned']}")
    start, end = reported.hole
    assert found["WAL of timeline 2"] == ("warning", f"missing: {start} to {end}")
    assert found[f"hole behind chain {ids['after']}"][0] == "warning"
    assert found["receiver"][0] == "warning"
    assert found["slot pgwal"][0] == "warning"


def test_pictures_have_what_the_repository_has(reported: Reported) -> None:
    document, ids = read(reported), reported.ids
    states = {backup.backup_id: backup for backup in document.backups}
    assert states[ids["unreadable"]].state == "unreadable"
    assert states[ids["unfinished"]].state == "unfinished"
    assert states[ids["pinned"]].is_pinned
    assert states[ids["merged"]].is_merged
    assert states[ids["newest"]].state == "usable"
    # The hole ends where the next backup did.
    chains = {chain.chain_id: chain for chain in document.chains}
    (hole,) = chains[ids["after"]].holes
    assert hole.start_lsn == reported.hole[0]
    assert hole.start_s <= hole.end_s
    assert chains[ids["newest"]].holes == []
    by_id = {timeline.timeline: timeline for timeline in document.timelines}
    assert (by_id[1].parent, by_id[2].parent) == (None, 1)
    assert [(each.start_lsn, each.end_lsn) for each in by_id[2].wal_holes] == [reported.hole]
    # The newest commit was a moment ago, and is there.
    commit = document.newest_commit
    assert commit is not None
    assert 0 <= document.made_s - commit.time_s < 120
    assert (commit.timeline, commit.backup_id) == (2, max(ids["newest"], ids["incremental"]))


def test_names_come_from_the_server_where_one_is_at_hand(reported: Reported) -> None:
    with_names, without = read(reported), read(reported, with_server=False)
    assert with_names.churn is not None
    assert without.churn is not None
    names = {relation.name for relation in with_names.churn.relations}
    assert "public.orders" in names
    assert 'public."odd ""name"" </script><b>"' in names
    assert {relation.name for relation in without.churn.relations} == {None}
    assert with_names.churn.relations[0].name == "public.orders"
    # What is counted depends on no server.
    counts = [
        [(each.relation, each.block_count, each.by_bucket, each.heat) for each in document.churn.relations]
        for document in (with_names, without)
        if document.churn is not None
    ]
    assert counts[0] == counts[1]


def test_the_forecast_is_that_of_the_server_or_of_the_summaries(reported: Reported) -> None:
    by_server, by_summaries = read(reported).forecast, read(reported, with_server=False).forecast
    assert by_server is not None
    assert by_server.by_server
    assert by_server.total_bytes is not None
    assert by_summaries is not None
    assert not by_summaries.by_server
    assert by_summaries.block_count > 0
    assert by_server.prior_id == by_summaries.prior_id == reported.ids["incremental"]
    said = succeed("incremental", "--repo", reported.repo, "-d", reported.server.conninfo, "--dry-run", "--json")
    relations = json.loads(said)["relations"]
    assert sum(relation["block_count"] for relation in relations) == by_server.block_count


def test_the_page_of_a_real_repository_is_shown(reported: Reported, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    said = succeed("report", "--repo", reported.repo, "-o", path, "-d", reported.server.conninfo)
    assert re.fullmatch(rf"{re.escape(str(path))}: \d+ critical findings, \d+ warnings\n", said)
    text = path.read_text()
    for name in TABLES[:2]:
        assert f"postgres: public.{name}<" in text
    assert "postgres: public.&quot;odd &quot;&quot;name&quot;&quot; &lt;/script&gt;&lt;b&gt;&quot;<" in text
    with chromium() as browser, opened(browser, path) as shown:
        pictures = shown.page.locator(".picture canvas").count()
        assert pictures == 7
        assert reported.ids["pinned"] in shown.page.locator("#windows table").text_content()
        shown.assert_quiet()


def test_a_server_that_is_away_is_a_finding(reported: Reported, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    outcome = run_pgwal("report", "--repo", reported.repo, "-o", path, "-h", "/nonexistent")
    assert outcome.code == 0
    assert outcome.stderr.startswith("pgwal: warning: the report is without the server: ")
    assert "it was not reached" in path.read_text()


def test_a_password_that_nobody_gives_is_a_finding(reported: Reported, tmp_path: Path) -> None:
    rules = reported.server.data_directory / "pg_hba.conf"
    before = rules.read_bytes()
    with reported.server.connect() as connection:
        connection.execute("CREATE ROLE asked LOGIN PASSWORD 'secret'")
    append_as_server(rules, b"local all asked scram-sha-256\n" + before, afresh=True)
    reported.server.reload()
    path = tmp_path / "report.html"
    outcome = run_pgwal("report", "--repo", reported.repo, "-o", path, "-d", f"{reported.server.conninfo} user=asked")
    append_as_server(rules, before, afresh=True)
    reported.server.reload()
    assert outcome.code == 0, outcome.stderr
    assert "without the server" in outcome.stderr
    assert "it was not reached: " in path.read_text()


def test_a_server_of_another_cluster_is_an_error(reported: Reported, tmp_path: Path) -> None:
    build_chains(tmp_path / "repo")
    asked = ("-o", tmp_path / "report.html", "-d", reported.server.conninfo)
    assert_failed(run_pgwal("report", "--repo", tmp_path / "repo", *asked), 1, "belongs to the cluster", "--repo")


def test_since_leaves_out_what_ended_before(reported: Reported, tmp_path: Path) -> None:
    document = read(reported)
    newest = next(each for each in document.backups if each.backup_id == reported.ids["newest"])
    assert newest.started_s is not None
    later = read_report(ReportRequest(Repository.open(reported.repo), since_s=newest.started_s))
    ids = {backup.backup_id for backup in later.backups}
    assert reported.ids["newest"] in ids
    assert reported.ids["pinned"] not in ids
    assert later.churn is not None
    assert document.churn is not None
    assert later.churn.summary_count < document.churn.summary_count
    # What is wrong is told all the same.
    assert f"backup {reported.ids['unreadable']}" in findings(later)
    path = tmp_path / "report.html"
    outcome = run_pgwal("report", "--repo", reported.repo, "-o", path, "-h", "/nonexistent", "--since", "yesterday")
    assert_failed(outcome, 1, "'yesterday' is not a time", "offset")
    assert not path.exists()


def test_places_that_take_no_file_are_refused(reported: Reported, tmp_path: Path) -> None:
    for path, cause in ((tmp_path, "is a directory"), (tmp_path / "none" / "x.html", "no directory")):
        assert_failed(run_pgwal("report", "--repo", reported.repo, "-o", path), 1, cause)
    assert_failed(run_pgwal("report", "--repo", tmp_path / "none", "-o", tmp_path / "x.html"), 1, "no repository")
