"""What contrib/ has works: units of systemd, an image's entry point, alerts and a dashboard of a real run's metrics."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fix_servers import ServerFactory
from pgwal_process import PGWAL, environment, finish, start_pgwal, succeed
from prometheus_client.parser import text_string_to_metric_families
from receiver.test_slot_guard import scrape, wait_for, write_wal
from test_main_job import prepare

from pgwal_cli.main import COMMANDS
from pgwal_cli.throwaway_server import ThrowawayServer

CONTRIB = Path(__file__).parent.parent / "contrib"
UNITS = sorted((CONTRIB / "systemd").iterdir())
RULES = CONTRIB / "prometheus" / "pgwal.rules.yml"
DASHBOARD = CONTRIB / "grafana" / "pgwal.json"
CONTAINERFILE = (CONTRIB / "Containerfile").read_text()

# Of 100; what is left is the network, and sockets, which a receiver needs.
MOST_EXPOSED = 20
OFFLINE_SINCE = 250


# ---- systemd


@cache
def systemd_version() -> int:
    if shutil.which("systemd-analyze") is None:
        return 0
    printed = subprocess.check_output(["systemd-analyze", "--version"], text=True)
    return int(printed.split()[1])


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program that is there."""
    if systemd_version() < OFFLINE_SINCE:
        pytest.skip(f"no systemd-analyze of version {OFFLINE_SINCE} or later is there")
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/pgwal/bin/pgwal", sys.executable))
    return tmp_path


def test_units_are_understood(units: Path) -> None:
    command = ["systemd-analyze", "verify", *(units / unit.name for unit in UNITS)]
    verified = subprocess.run(command, capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.parametrize("name", [unit.name for unit in UNITS if unit.suffix == ".service"])
def test_units_may_do_little(units: Path, name: str) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={MOST_EXPOSED}", units / name]
    judged = subprocess.run(command, capture_output=True, text=True)
    assert judged.returncode == 0, judged.stdout


def test_units_run_commands_that_there_are() -> None:
    commands = [
        shlex.split(line.partition("=")[2])
        for unit in UNITS
        for line in unit.read_text().splitlines()
        if line.startswith("ExecStart=")
    ]
    assert [words[:3] for words in commands] == [["/opt/pgwal/bin/pgwal", "-C", "%i"]] * 4
    assert {words[3] for words in commands} == {"stream", "backup", "expire", "verify"} <= set(COMMANDS)
    timers = {unit.stem for unit in UNITS if unit.suffix == ".timer"}
    assert timers == {"pgwal-backup@", "pgwal-expire@", "pgwal-verify@"}


# ---- the image


def test_the_image_is_made_of_what_there_is() -> None:
    root = CONTRIB.parent
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", CONTAINERFILE, re.MULTILINE):
        for source in sources.split():
            assert (root / source).exists(), source
    (extras,) = re.findall(r'install --no-cache-dir "\.\[(.*)\]"', CONTAINERFILE)
    project = (root / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in project for extra in extras.split(","))


def entry_point() -> list[str]:
    (words,) = re.findall(r"^ENTRYPOINT (.*)$", CONTAINERFILE, re.MULTILINE)
    assert json.loads(words) == ["pgwal"]
    return PGWAL


def can_be_process_1() -> bool:
    program = ["unshare", "--pid", "--fork", "true"]
    return shutil.which("unshare") is not None and subprocess.run(program, capture_output=True).returncode == 0


@pytest.mark.postgres(18)
def test_the_entry_point_is_a_process_1_that_ends(server: ThrowawayServer, scratch: Path) -> None:
    """The kernel gives process 1 no default action of a signal: it ends by its own handlers, or not at all."""
    if not can_be_process_1():
        pytest.skip("no process namespace can be made here")
    configuration = scratch / "pgwal.toml"
    configuration.write_text(f'[cluster.main]\nrepo = "{scratch}/repo"\ndbname = "{server.conninfo}"\n')
    configuration.chmod(0o644)
    (stop,) = re.findall(r"^STOPSIGNAL (.*)$", CONTAINERFILE, re.MULTILINE)
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", *entry_point(), "-C", "main", "stream"],
        env=environment(PGWAL_CONFIG=str(configuration)),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert "receiving WAL from" in process.stderr.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.Signals[stop])
        _, messages = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, messages


# ---- alerts and the dashboard

Samples = dict[str, str]


def samples_of(text: str, **labels: str) -> Samples:
    """Return the value of each series, as Prometheus names it, with labels that it gives its target."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            every = sample.labels | labels
            pairs = ",".join(f'{name}="{value}"' for name, value in sorted(every.items()))
            found[f"{sample.name}{{{pairs}}}"] = f"{sample.value:g}"
    return found


TARGET = {"job": "pgwal", "instance": "db1:9187", "cluster": "main"}


@pytest.fixture
def running(make_server: ServerFactory, scratch: Path) -> Iterator[tuple[ThrowawayServer, str]]:
    """A receiver that keeps WAL in a spool, as those into object stores do, and the address of its metrics."""
    server = make_server(initdb_args=("--wal-segsize=1",), settings={"max_slot_wal_keep_size": "1GB"})
    prepare(server)
    recipient = succeed("key", "generate", "-o", scratch / "key").strip()
    succeed("init", "--repo", scratch / "repo", "--recipient", recipient)
    process = start_pgwal(
        "stream", "--repo", scratch / "repo", "-d", server.conninfo, "--slot", "pgwal", "--create-slot",
        "--max-retained", "20M", "--metrics", "127.0.0.1:0",
    )  # fmt: skip
    try:
        assert process.stderr is not None
        message = process.stderr.readline()
        assert message.startswith("pgwal: serving metrics at "), message
        # What the receiver says must go somewhere.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield server, message.split()[-1]
    finally:
        process.terminate()
        finish(process)


@pytest.mark.postgres(18)
def test_alerts_and_dashboard_on_metrics_of_a_real_run(running: tuple[ThrowawayServer, str], tmp_path: Path) -> None:
    server, address = running
    wait_for(lambda: "pgwal_slot_active" in scrape(address) and "pgwal_receiver_lag_seconds" in scrape(address))
    write_wal(server, 2)
    wait_for(lambda: "pgwal_receiver_lag_bytes 0.0" in scrape(address))
    wait_for(lambda: "pgwal_newest_backup_timestamp_seconds" in scrape(address))
    text = scrape(address)
    served = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    for expression in (*rule_expressions(), *dashboard_expressions()):
        names = set(re.findall(r"\b(?:pgwal|process)_[a-z_]+", expression))
        assert names <= served, expression
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool is there (Debian's package prometheus has it)")
    healthy = samples_of(text, **TARGET) | {samples_name("up", TARGET): "1"}
    tests = [rule_test(healthy, {})]
    tests += [rule_test(healthy | changes(healthy, values), {alert}) for alert, values in TROUBLE.items()]
    # JSON is YAML.
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    checked = subprocess.run([promtool, "check", "rules", RULES], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert set(re.findall(r"alert: (\w+)", RULES.read_text())) == set(TROUBLE)


TROUBLE = {
    "PgwalReceiverAway": {"up": "0"},
    "PgwalNotStreaming": {"pgwal_receiver_streaming": "0"},
    "PgwalLag": {"pgwal_receiver_lag_seconds": "600"},
    "PgwalServerDown": {"pgwal_server_up": "0"},
    "PgwalSlotNearItsLimit": {"pgwal_slot_retention_warning": "1"},
    "PgwalSlotBeyondItsLimit": {"pgwal_slot_retained_bytes": "99999999"},
    "PgwalSlotLosesWal": {"pgwal_slot_wal_status": "1"},
    "PgwalStoreAway": {"pgwal_receiver_store_away": "1"},
    "PgwalSpoolFull": {"pgwal_receiver_spool_full": "1"},
    # The clock of promtool's tests starts at 0.
    "PgwalBackupTooOld": {"pgwal_newest_backup_timestamp_seconds": "-100000"},
    "PgwalReceiverErrors": {
        'pgwal_receiver_errors_total{cluster="main",instance="db1:9187",job="pgwal",kind="upload"}': "0+1"
    },
}
"""Which alert is to fire, and nothing else, when metrics of the run have other values."""


def samples_name(name: str, labels: dict[str, str]) -> str:
    return next(iter(samples_of(f"{name} 1\n", **labels)))


def changes(healthy: Samples, values: dict[str, str]) -> Samples:
    """Return the series of these names with other values; a slot that loses WAL is one of another status."""
    found = {}
    for name, value in values.items():
        series = [each for each in healthy if each == name or each.startswith(f"{name}{{")]
        assert series, f"{name} is not among the metrics of the run"
        found |= {each.replace('status="reserved"', 'status="lost"'): value for each in series}
    return found


def rule_test(samples: Samples, alerts: set[str]) -> dict[str, Any]:
    """Return what promtool takes for a test: that of all alerts these alone fire, after a quarter of an hour."""
    series = [
        {"series": name, "values": f"{value if '+' in value else f'{value}+0'}x20"} for name, value in samples.items()
    ]
    firing = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(alerts)]
    expression = 'count by (alertname) (ALERTS{alertstate="firing"})'
    return {
        "interval": "1m",
        "name": ", ".join(alerts) or "healthy",
        "input_series": series,
        "promql_expr_test": [{"expr": expression, "eval_time": "15m", "exp_samples": firing}],
    }


def rule_expressions() -> list[str]:
    return re.findall(r"^ +expr: (.*)$", RULES.read_text(), re.MULTILINE)


def dashboard_expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]
