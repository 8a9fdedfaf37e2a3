"""Run benchmarks, all or those that are named, and print their figures as text and JSON."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import replace
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.context import Context
from benchmarks.machine import describe
from benchmarks.measure import Comparison
from pgwal_cli.output import size_text, table_lines
from pgwal_cli.server_installation import embedded_installation, make_reachable
from pgwal_cli.throwaway_server import give_to_server

_HEADER = ("SIDE", "SECONDS", "RATIO", "MB/S", "CPU SECONDS", "PEAK MEMORY", "STORED")


class Benchmark(StrEnum):
    """The benchmarks there are: a module each."""

    SCAN = "scan"
    STREAM = "stream"
    BACKUP = "backup"
    PGBACKREST = "pgbackrest"
    PACKED = "packed"
    CLOUD = "cloud"
    ENCRYPTED = "encrypted"
    MERGE = "merge"
    RESTORE = "restore"
    DELTA = "delta"
    REPLAY = "replay"
    ARCHIVE = "archive"
    FLEET = "fleet"
    PLAN = "plan"
    CATALOGUE = "catalogue"
    GROWTH = "growth"
    CONSTRUCT = "construct"
    BEFORE = "before"


def main(
    names: Annotated[list[Benchmark] | None, typer.Argument(help="Which to run; all by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each side runs, after once to warm up.")] = 5,
    before: Annotated[
        Path | None, typer.Option(help="The pgwal of another installation, for the benchmark of that name.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where the JSON goes; stdout by default.")
    ] = None,
) -> None:
    """Measure pgwal beside its peers."""
    # As an installed program has its bytecode, so that the runs that warm up leave it.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    scratch = Path(tempfile.mkdtemp(prefix="pgwal-benchmark-"))
    try:
        scratch.chmod(0o755)
        give_to_server(scratch)
        context = Context(make_reachable(embedded_installation(), scratch), scratch, rounds, before)
        machine = describe(context.installation)
        print("\n".join(f"{name}: {value}" for name, value in machine.items()))
        comparisons: list[Comparison] = []
        for name in names or list(Benchmark):
            for comparison in _run(name, context):
                print(f"\n{_text(comparison)}", flush=True)
                comparisons.append(comparison)
        _print_json({"machine": machine, "comparisons": [comparison.document() for comparison in comparisons]}, output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(name: Benchmark, context: Context) -> list[Comparison]:
    """Run a benchmark in a directory of its own, which does not outlast it."""
    scratch = context.scratch / name
    scratch.mkdir(mode=0o755)
    give_to_server(scratch)
    try:
        comparisons: list[Comparison] = import_module(f"benchmarks.{name}").run(replace(context, scratch=scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return comparisons


def _text(comparison: Comparison) -> str:
    rows = []
    for name, measured in comparison.medians.items():
        speed = f"{comparison.bytes_processed / measured.seconds / 1e6:.0f}" if comparison.bytes_processed else "-"
        ratio = f"{comparison.ratio(name):.2f}" if comparison.ranked else "-"
        rows.append(
            (
                name,
                f"{measured.seconds:.3f}",
                ratio,
                speed,
                f"{measured.cpu_seconds:.3f}",
                size_text(measured.peak_bytes),
                size_text(measured.stored_bytes) if measured.stored_bytes else "-",
            )
        )
    target = f", target {comparison.target:.2f}" if comparison.target is not None else ""
    return "\n".join([f"{comparison.title}{target}", *table_lines(_HEADER, rows)])


def _print_json(document: dict[str, Any], output: Path | None) -> None:
    text = json.dumps(document, indent=2)
    if output is None:
        print(f"\n{text}")
    else:
        output.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
