"""What ``--json`` prints is published: docs/json.md and the schemas say it, the types make it, real output holds it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, is_typeddict

import pytest
from fix_servers import ServerFactory
from pgwal_process import run_pgwal
from support.json_documents import (
    DOCS,
    DOCUMENTS,
    ERROR,
    REPORT,
    SCHEMAS,
    document_name,
    hold_to_schemas,
    meanings,
    members,
    schema_text,
    validate,
)
from test_docs import COMMANDS
from test_main_job import prepare, run_load

from pgwal.errors import ErrorFacts
from pgwal_cli.documents import FactsDocument
from pgwal_cli.main import _FOR_ALL

OF_TYPE = {
    int: ("_bytes", "_count", "_oid", "_no", "_number", "timeline"),
    str: ("_lsn", "_at", "_identifier", "_path", "_segment"),
    float: ("_seconds",),
}
"""What members whose names end so are."""


def all_members() -> dict[str, list[Any]]:
    """Return the types that each name stands for, null left out, in all documents and their parts."""
    found: dict[str, list[Any]] = defaultdict(list)
    seen = set()

    def look(hint: Any) -> None:
        if is_typeddict(hint) and hint not in seen:
            seen.add(hint)
            for name, each in members(hint).items():
                found[name] += [choice for choice in choices(each) if choice is not NoneType]
                look(each)
        for argument in get_args(hint):
            look(argument)

    for document in DOCUMENTS.values():
        look(document)
    return found


def choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if NoneType in get_args(hint) else (hint,)


def plain_type(hint: Any) -> Any:
    """Return what JSON calls it: an object, an array, or a kind of value."""
    if is_typeddict(hint):
        return dict
    if get_origin(hint) is Literal:
        return type(get_args(hint)[0])
    return list if get_origin(hint) is list else dict if get_args(hint) else hint


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_schemas_are_those_of_the_documents(name: str) -> None:
    published = (SCHEMAS / f"{name}.json").read_text(encoding="utf-8")
    assert published == schema_text(name), "write them anew: python tests/support/json_documents.py"


def test_there_is_no_other_schema() -> None:
    assert {path.stem for path in SCHEMAS.iterdir()} == set(DOCUMENTS)


def test_every_name_has_one_meaning_and_one_type() -> None:
    found = all_members()
    assert set(meanings()) == set(found)
    types = {name: set(map(plain_type, hints)) - {dict} or {dict} for name, hints in found.items()}
    assert {name: each for name, each in types.items() if len(each) > 1} == {}


def test_a_name_says_how_its_value_looks() -> None:
    types = {name: plain_type(hints[0]) for name, hints in all_members().items()}
    ends = {end: wanted for wanted, all_ends in OF_TYPE.items() for end in all_ends}
    for name, found in types.items():
        wanted = [each for end, each in ends.items() if f"_{name}".endswith(end)]
        assert name == "phase_seconds" or all(found is each for each in wanted), name
        assert found is not float or f"_{name}".endswith("_seconds") or name == "percent", name
        for word, end in (("bytes", "_bytes"), ("size", "_bytes"), ("count", "_count"), ("time", "timeline")):
            assert word not in name.split("_") or f"_{name}".endswith(end), name


def test_facts_of_errors_are_those_that_errors_have() -> None:
    names = {"timeline_id": "timeline", "backup_id": "backup"}
    assert {names.get(name, name) for name in ErrorFacts.__annotations__} == set(members(FactsDocument))


def test_every_command_with_json_is_documented() -> None:
    table = (DOCS / "json.md").read_text(encoding="utf-8").partition("## Documents\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*) \| \[([\w-]+)\]\(schemas/([\w-]+)\.json\)", table, re.MULTILINE)
    assert all(name == file for _, name, file in rows)
    assert sorted(name for _, name, _ in rows) == sorted(DOCUMENTS)
    cells = {name: re.findall(r"`([^`]+)`", cell) for cell, name, _ in rows}
    assert set(cells.pop("all-clusters")) == {*_FOR_ALL, "--all"}
    documented = {words: name for name, cell in cells.items() for words in cell}
    for command, made in COMMANDS.items():
        if any("--json" in parameter.opts for parameter in made.params):
            assert documented.pop(command) == document_name(command.split())
    for words in ("incremental --dry-run", "backup --dry-run", "restore --dry-run", "inspect --stats"):
        assert documented.pop(words) == document_name(words.split())
    assert documented == {"verify --report FILE": REPORT}


def test_what_is_not_in_the_schema_is_refused() -> None:
    document: dict[str, Any] = {"version": 1, "backup": "20261122T101530Z_full", "pinned": True, "changed": False}
    validate("pin", document)
    for wrong in ({"more": 1}, {"pinned": "yes"}, {"version": 2}):
        with pytest.raises(AssertionError, match="pin: "):
            validate("pin", document | wrong)
    with pytest.raises(AssertionError, match="required"):
        validate("pin", {"version": 1})
    line = '{"version": 1, "error": {"kind": "FormatError", "message": "x", "hint": null, "exit_code": 1}}\n'
    with pytest.raises(AssertionError, match="transient"):
        hold_to_schemas(["list", "--json"], 1, "", line)


class Exercised:
    """Runs commands with --json and notes which documents they printed."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __call__(self, *args: str | Path, code: int = 0, **env: str) -> Any:
        arguments = [*map(str, args), "--json"]
        outcome = run_pgwal(*arguments, env=env)
        assert outcome.code == code, outcome.stderr
        names = hold_to_schemas(arguments, outcome.code, outcome.stdout, outcome.stderr)
        assert names
        self.names |= set(names)
        return json.loads(outcome.stdout) if outcome.stdout and "inspect" not in args else None


@pytest.mark.postgres(18)
def test_every_schema_is_held_by_real_output(make_server: ServerFactory, scratch: Path) -> None:
    run, repo, server = Exercised(), scratch / "repo", make_server()
    prepare(server)
    at, to_server = ["--repo", repo], ["-d", server.conninfo]
    taking = [*at, *to_server, "-c", "fast"]
    run("init", *at)
    full = run("full", *taking)
    run_load(server, 1)
    run("incremental", *at, *to_server, "--dry-run")
    incremental = run("incremental", *taking, "--audit", "100")
    run("audit", *at, *to_server)
    for command in (["list", "--why", "--keep-full", "1"], ["show", full["id"]], ["status", *to_server], ["verify"]):
        run(*command, *at)
    run("check", *to_server)
    run("grants", *to_server, "--role", "postgres")
    run("pin", full["id"], *at)
    look_at_wal(run, repo, scratch, incremental["start_lsn"], incremental["stop_lsn"])
    restore(run, repo, scratch, incremental["id"], server.installation.bin_dir)
    run("export", full["id"], *at, "-o", scratch / "exported")
    run("copy", *at, "--to", scratch / "copy")
    run("merge", *at)
    run("expire", *at, "--keep-full", "1")
    run("delete", "latest", *at, "--dry-run")
    keep_keys_and_configuration(run, repo, scratch)
    run("list", code=2)
    # tests/test_demo.py runs that, which takes as long as all this.
    assert run.names | {"demo"} == set(DOCUMENTS)
    assert ERROR in run.names


def look_at_wal(run: Exercised, repo: Path, scratch: Path, start: str, end: str) -> None:
    bounds = ["--from", start, "--to", end]
    run("map", "--repo", repo, *bounds)
    run("inspect", repo / "wal", *bounds)
    run("inspect", repo / "wal", *bounds, "--stats")
    run("summarize", repo / "wal", "-o", scratch / "summaries")
    run("import", repo / "wal", "--repo", repo, "--dry-run")


def restore(run: Exercised, repo: Path, scratch: Path, backup_id: str, bin_dir: Path) -> None:
    at, report = ["--repo", repo], scratch / "report.json"
    run("restore", backup_id, *at, "-D", scratch / "restored", "--dry-run")
    run("restore", backup_id, *at, "-D", scratch / "restored", "-N")
    run("combine", backup_id, *at, "-o", scratch / "combined", "-N")
    run("verify", *at, "--restore", "--bindir", bin_dir, "--report", report)
    validate(REPORT, json.loads(report.read_text()))
    run.names.add(REPORT)


def keep_keys_and_configuration(run: Exercised, repo: Path, scratch: Path) -> None:
    identity, home = scratch / "identity", str(scratch / "home")
    recipient = run("key", "generate", "-o", identity)["recipient"]
    run("init", "--repo", scratch / "sealed", "--recipient", recipient, PGWAL_METADATA_KEY=f"{home}.key")
    run("key", "list", "--repo", scratch / "sealed", PGWAL_METADATA_KEY=f"{home}.key")
    file = scratch / "pgwal.toml"
    file.write_text(f'[cluster.main]\nrepo = "{repo}"\n[cluster.away]\nrepo = "{scratch}/none"\n')
    file.chmod(0o644)
    for command in (["config", "check"], ["config", "show"]):
        run(*command, "--config", file)
    run("list", "--all", "--config", file, code=1)
