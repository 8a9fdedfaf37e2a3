"""The configuration file: which one counts, what is refused in it, and which of several values a command gets."""

from __future__ import annotations

import json
import re
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pgwal_process import (
    Outcome,
    assert_failed,
    assert_nothing_raw,
    environment,
    finish,
    run_pgwal,
    start_pgwal,
    succeed,
)

from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.repository import Repository
from pgwal_cli.configuration_file import ConfigurationError, ConfigurationFile
from pgwal_cli.configured_options import (
    CALL_OPTIONS,
    CLUSTER_OPTIONS,
    OF_ANOTHER_MEANING,
    CommandSettings,
    all_commands,
)
from pgwal_cli.exit_codes import FAILED, NO_CONNECTION, USAGE, VERIFICATION_FAILED
from pgwal_cli.main import COMMANDS
from pgwal_cli.main import run as run_here

FATAL = 126


def make_repository(path: Path) -> Path:
    Repository.open_or_create(path, RepositoryIdentity(7_000_000_000_000_000_001, 16 << 20, 18))
    return path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o644)
    return path


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repo")


@pytest.fixture
def file(tmp_path: Path, repo: Path) -> Path:
    return write(
        tmp_path / "pgwal.toml",
        f'[default]\nkeep-full = 4\n\n[cluster.main]\nrepo = "{repo}"\n\n[cluster.away]\nrepo = "{tmp_path}/absent"\n',
    )


def run(file: Path, *args: str | Path, **variables: str) -> Outcome:
    return run_pgwal(*args, env={"PGWAL_CONFIG": str(file), **variables})


# ---- which file, and which cluster


def test_a_cluster_is_named_before_or_behind_the_command(file: Path) -> None:
    for args in (
        ["-C", "main", "list"],
        ["list", "-C", "main"],
        ["--cluster=main", "list"],
        ["-Cmain", "list"],
        ["-C", "away", "list", "-C", "main"],
    ):
        outcome = run(file, *args)
        assert (outcome.code, outcome.stdout) == (0, "no backups\n"), outcome.stderr
    for args in (["--config", file, "-C", "main", "list"], ["list", "-C", "main", "--config", file]):
        assert succeed(*args) == "no backups\n"


def test_the_users_own_file_counts_before_the_systems(file: Path, tmp_path: Path) -> None:
    own = tmp_path / "config" / "pgwal"
    own.mkdir(parents=True)
    write(own / "pgwal.toml", file.read_text())
    assert succeed("list", "-C", "main", env={"XDG_CONFIG_HOME": str(own.parent)}) == "no backups\n"
    other = write(tmp_path / "other.toml", '[cluster.other]\nrepo = "/nowhere"\n')
    named = run_pgwal("list", "-C", "main", "--config", other, env={"XDG_CONFIG_HOME": str(own.parent)})
    assert_failed(named, USAGE, "no cluster 'main' in .*other.toml", "It has other")


def test_an_unknown_cluster_is_named_with_the_nearest(file: Path) -> None:
    assert_failed(run(file, "list", "-C", "mian"), USAGE, "no cluster 'mian'", "Is main meant")
    assert_failed(run_pgwal("list", "-C", "main"), USAGE, "no configuration file", "pgwal.toml")


def test_whoever_names_nothing_is_told_the_clusters(file: Path) -> None:
    assert_failed(run(file, "list"), USAGE, "no cluster and no repository", r"-C \(main, away\)")


def test_help_and_commands_without_a_file_do_not_mind_a_bad_one(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.toml", "nonsense\n")
    for args in (["--help"], ["list", "-?"], ["-C", "main", "full", "-?"]):
        outcome = run(bad, *args)
        assert outcome.code == 0, outcome.stderr
    assert_failed(run(bad, "list", "--repo", tmp_path), USAGE, r"bad.toml: .*line 1")


def test_fetching_wal_fails_for_good_where_the_file_is_bad(tmp_path: Path) -> None:
    # The server takes an exit code below 126 for the end of WAL.
    bad = write(tmp_path / "bad.toml", "nonsense\n")
    assert run(bad, "fetch-wal", "-C", "main", "0" * 24, tmp_path / "to").code == FATAL
    assert run(bad, "-C", "main", "fetch-wal", "0" * 24, tmp_path / "to").code == FATAL


@pytest.mark.parametrize("mode", [0o664, 0o666])
def test_a_file_that_others_may_write_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert_failed(run(file, "list", "-C", "main"), USAGE, "can be written by others", "chmod go-w")


def test_a_file_is_read_to_no_more_than_its_end(tmp_path: Path) -> None:
    assert_failed(run(Path("/dev/zero"), "list", "--repo", tmp_path), USAGE, "larger than any")
    assert_failed(run(tmp_path / "absent", "list", "--repo", tmp_path), USAGE, "cannot be read", "/dev/null")
    assert_failed(run(Path("/dev/null"), "list", "--repo", tmp_path), FAILED, "no repository")


# ---- which value counts


def test_the_command_line_counts_before_the_environment_and_that_before_the_file(file: Path, tmp_path: Path) -> None:
    named = make_repository(tmp_path / "named")
    (named / "backups" / "20261122T101530Z_full").mkdir()
    by_variable = run(file, "list", "-C", "away", PGWAL_REPO=str(named))
    assert by_variable.code == 0
    assert "PGWAL_REPO counts" in by_variable.stderr
    by_option = run(file, "list", "-C", "away", "--repo", named, PGWAL_REPO="/nowhere")
    assert (by_option.code, by_option.stdout) == (0, "no backups\n"), by_option.stderr
    assert_failed(run(file, "list", "-C", "away"), FAILED, "no repository in .*absent")


def test_the_nearest_table_counts(tmp_path: Path, repo: Path) -> None:
    file = write(
        tmp_path / "levels.toml",
        f"""
        [default]
        keep-full = 1
        jobs = 1
        [default.verify]
        jobs = 2
        [cluster.main]
        repo = "{repo}"
        keep-full = 3
        [cluster.other]
        repo = "{repo}"
        jobs = 5
        [cluster.other.verify]
        jobs = 6
        """,
    )
    shown = json.loads(succeed("config", "show", "--json", env={"PGWAL_CONFIG": str(file)}))["clusters"]
    values = {
        each["cluster"]: {(option["command"], option["option"]): option["value"] for option in each["options"]}
        for each in shown
    }
    assert values["main"] == {
        (None, "repo"): str(repo), (None, "jobs"): "1", ("verify", "jobs"): "2", (None, "keep-full"): "3",
    }  # fmt: skip
    assert values["other"][(None, "jobs")] == "5"
    assert values["other"][("verify", "jobs")] == "6"
    origin = next(option["origin"] for option in shown[0]["options"] if option["option"] == "keep-full")
    assert origin == f"{file}:9 [cluster.main]"


def test_what_is_said_nearer_ends_what_excludes_it(tmp_path: Path, repo: Path) -> None:
    file = write(
        tmp_path / "keys.toml",
        f'[cluster.main]\nrepo = "{repo}"\nidentity = "/a"\n[cluster.main.restore]\nclone = true\n',
    )
    assert run(file, "list", "-C", "main", "--identity-command", "true").code == 0
    assert_failed(run(file, "list", "-C", "main", "--identity-command", "x", "--identity", "/b"), USAGE, "exclude")
    restored = run(file, "restore", "-C", "main", "--link", "-D", tmp_path / "target")
    assert_failed(restored, FAILED, "no backup")


def test_a_connection_string_in_the_file_gives_way_to_the_command_line(tmp_path: Path, repo: Path) -> None:
    file = write(
        tmp_path / "connection.toml",
        f'[default]\ndbname = "host=/far port=1 dbname=postgres"\n[cluster.main]\nrepo = "{repo}"\nhost = "/near"\n',
    )
    assert_failed(run(file, "check", "-C", "main"), NO_CONNECTION, "/near/.s.PGSQL.1\\b")
    assert_failed(run(file, "check", "-C", "main", "-h", "/here", "-p", "2"), NO_CONNECTION, "/here/.s.PGSQL.2\\b")
    assert_failed(run(file, "check", "-C", "main", "-d", "host=/other"), NO_CONNECTION, "/other/.s.PGSQL.")
    # As a service file does, a named cluster counts before what libpq reads.
    assert_failed(run(file, "check", "-C", "main", PGHOST="/env"), NO_CONNECTION, "/near/")


def test_what_an_option_means_elsewhere_is_not_taken_from_a_cluster(tmp_path: Path, repo: Path) -> None:
    file = write(tmp_path / "pgdata.toml", f'[cluster.main]\nrepo = "{repo}"\npgdata = "/srv/live"\n')
    # The cluster's own data directory is none to restore into.
    assert_failed(run(file, "restore", "-C", "main"), USAGE, "Missing option '-D'")
    into = write(tmp_path / "into.toml", f'{file.read_text()}[cluster.main.restore]\npgdata = "{tmp_path}/t"\n')
    assert_failed(run(into, "restore", "-C", "main"), FAILED, "no backup")


def test_what_needs_another_option_says_nothing_in_a_file_without_it(tmp_path: Path, repo: Path) -> None:
    text = f'[cluster.main]\nrepo = "{repo}"\nkeep-daily = 3\nbindir = "/b"\nrestore-dir = "/r"\ncompress = "zstd:3"\n'
    file = write(tmp_path / "purpose.toml", text)
    assert run(file, "list", "-C", "main").code == 0
    assert run(file, "list", "-C", "main", "--why").code == 0
    assert run(file, "verify", "-C", "main").code == 0
    assert_failed(run(file, "list", "-C", "main", "--keep-full", "1"), USAGE, "--why")
    assert run(file, "init", "-C", "main").code == 0
    lz4 = write(tmp_path / "lz4.toml", f'[cluster.main]\nrepo = "{repo}"\ncompress = "lz4"\n')
    assert_failed(run(lz4, "init", "-C", "main"), USAGE, ":3: .*packs are compressed with zstd", "So says pgwal init")


def test_recipients_are_those_of_a_new_repository_and_never_to_be_removed(tmp_path: Path) -> None:
    recipient = succeed("key", "generate", "-o", tmp_path / "key").strip()
    text = f'[cluster.main]\nrepo = "{tmp_path}/repo"\nrecipients = ["{recipient}"]\nidentity = "{tmp_path}/key"\n'
    file = write(tmp_path / "recipients.toml", text)
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert run(file, "init", "-C", "main", **home).code == 0
    assert run(file, "-C", "main", "key", "list", **home).stdout.startswith(recipient)
    assert_failed(run(file, "key", "remove", "-C", "main", **home), USAGE, "Missing option '--recipient'")
    assert_failed(run(file, "key", "add", "-C", "main", **home), USAGE, "Missing option '--recipient'")


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "line", "cause", "hint"),
    [
        ("\n[cluser.main]\n", 2, "cluser is neither in", "cluster"),
        ('repo = "/x"\n', 1, "repo is neither in", None),
        ("[cluster]\nmain = 1\n", 2, "is no table", None),
        ('[cluster.main]\n\nhots = "x"\n', 3, "hots is no option", "Is host meant"),
        ("[default]\nkeep_daily = 3\n", 2, "keep_daily is no option", "keep-daily"),
        ("[cluster.main.lsit]\njson = true\n", 1, "no command has that name", "list"),
        ("[cluster.main.list]\nslot = 'x'\n", 2, "slot is no option of pgwal list", "stream, full"),
        ("[default]\ndry-run = true\n", 2, "says what one call does", r"\[default.COMMAND\]"),
        ("[default]\nkeep-full = [\n  1,\n]\n", 2, "not a whole number", None),
        ("[default]\n\nkeep-full = true\n", 3, "not a whole number", None),
        ("[default]\nkeep-full = 0\n", 2, "not in the range", None),
        ("[default]\nidentity = 3\n", 2, "not text", None),
        ("[default.list]\nwhy = 'yes'\n", 2, "not true or false", None),
        ('[default]\nrepo = "here"\n', 2, "begins with no /", None),
        ('[default]\nrepo = "s3:bucket"\n', 2, "begins with no /|names no object store", None),
        ('[default]\nidentity = "/a\\u0000b"\n', 2, "zero byte", None),
        ("cluster = 1\n", 1, "is no table", None),
        ("[[cluster.main]]\n", 1, "is no table", None),
        ("[cluster.main]\nlist = 3\n", 2, "list is no option", None),
        ("[default]\npassword = 'x'\n", 2, "no place in a file", "pgpass"),
        ("[cluster.main]\nlabel = '''a\nb'''\nx = 1\n", 4, "x is no option", None),
    ],
)
def test_what_is_not_understood_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: int, cause: str, hint: str | None
) -> None:
    file = write(tmp_path / "bad.toml", text)
    # In this process: there are many of them.
    code = run_here(["list", *(("-C", "main") if "main" in text else ("--repo", "/nowhere")), "--config", str(file)])
    outcome = Outcome(code, *capsys.readouterr())
    assert_failed(outcome, USAGE, f"bad.toml:{line}: .*(?:{cause})", hint)
    assert run_here(["config", "check", "--config", str(file)]) == USAGE
    assert f"bad.toml:{line}: " in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "value",
    [
        "host=a password=secret99",
        "postgresql://u:secret99@host/db",
        "host=a sslpassword = 'secret99'",
        "postgresql://host/db?user=x&password=secret99",
    ],
)
def test_no_password_has_a_place_in_a_file(tmp_path: Path, repo: Path, value: str) -> None:
    file = write(tmp_path / "secret.toml", f'[cluster.main]\nrepo = "{repo}"\ndbname = "{value}"\n')
    for args in (["check", "-C", "main"], ["config", "check"], ["config", "show"]):
        outcome = run(file, *args)
        assert "secret99" not in outcome.stdout + outcome.stderr
    assert_failed(run(file, "check", "-C", "main"), USAGE, ":3: .*password", "pgpass")


def test_commands_are_shown_by_their_names_alone(tmp_path: Path, repo: Path) -> None:
    file = write(tmp_path / "c.toml", f'[cluster.main]\nrepo = "{repo}"\nidentity-command = "vault read -t s3cr3t"\n')
    shown = run(file, "config", "show", PGWAL_METADATA_KEY="/k")
    assert "vault ..." in shown.stdout
    assert "PGWAL_METADATA_KEY" in shown.stdout
    assert "s3cr3t" not in shown.stdout
    by_variable = run(file, "config", "show", PGWAL_IDENTITY_COMMAND="other s3cr3t")
    assert "other ..." in by_variable.stdout
    assert "vault" not in by_variable.stdout


def test_a_right_file_is_said_to_be_right(file: Path) -> None:
    outcome = run(file, "config", "check")
    assert (outcome.code, outcome.stdout) == (0, f"{file}: main, away; nothing is wrong\n")
    assert json.loads(run(file, "config", "check", "--json").stdout)["mistakes"] == []
    assert_failed(run_pgwal("config", "check"), USAGE, "no configuration file")


def test_a_cluster_without_a_repository_is_wrong(tmp_path: Path) -> None:
    file = write(tmp_path / "none.toml", '[cluster.main]\nhost = "x"\n')
    assert ":1: cluster.main has no repository" in run(file, "config", "check").stdout


NAMES = st.sampled_from(
    ["cluster", "default", "main", "stream", "key", "list", "environment", "repo", "jobs", "x y", ""]
)
SCALARS = st.one_of(
    st.text(max_size=4), st.integers(), st.booleans(), st.floats(), st.sampled_from(["/a", "age1x", "s3:"])
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=12,
)


@given(st.dictionaries(NAMES, DOCUMENTS, max_size=3))
@settings(max_examples=60)
def test_whatever_stands_in_a_file_is_understood_or_refused(document: dict[str, Any]) -> None:
    file = ConfigurationFile(Path("/pgwal.toml"), "", document)
    for command in all_commands()[:3]:
        with suppress(ConfigurationError):
            CommandSettings(file, "main", command, COMMANDS)
            file.require_cluster("main")


def test_lines_of_statements_are_found_however_they_are_written(tmp_path: Path) -> None:
    text = (
        '# first\na.b = 1\n\n[x."y z"]\nk = [\n  "[not.a.table]",\n]\n"q" = {r = 2}\ns = """\n[t]\nu = 1\n"""\nv = 1\n'
    )
    read = ConfigurationFile.read(write(tmp_path / "lines.toml", text))
    lines = {("a", "b"): 2, ("x", "y z"): 4, ("x", "y z", "k"): 5, ("x", "y z", "q", "r"): 8, ("x", "y z", "v"): 13}
    assert {keys: read.line_of(keys) for keys in lines} == lines


# ---- variables of object stores


def test_a_store_is_reached_by_the_variables_of_its_cluster(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret", "s3cr3t\n")
    secret.chmod(0o600)
    (tmp_path / "counted").mkdir()
    text = """
        [default.environment]
        AWS_ALLOW_HTTP = "true"
        AWS_REGION = "far"
        [cluster.first]
        repo = "s3://bucket/first"
        [cluster.first.environment]
        AWS_ENDPOINT_URL = "http://127.0.0.1:1"
        AWS_ACCESS_KEY_ID = "me"
        AWS_SECRET_ACCESS_KEY = { file = "%s/secret" }
        [cluster.second]
        repo = "s3://bucket/second"
        [cluster.second.environment]
        AWS_ENDPOINT_URL = "http://127.0.0.1:2"
        AWS_ACCESS_KEY_ID = "you"
        AWS_SECRET_ACCESS_KEY = { command = "echo t0ken" }
        """
    file = write(tmp_path / "stores.toml", text % tmp_path)
    listed = run(file, "list", "--all", "--json")
    assert listed.code == NO_CONNECTION
    first, second = (each["error"]["message"] for each in json.loads(listed.stdout)["clusters"])
    assert "127.0.0.1:1 does not answer" in first
    assert "127.0.0.1:2 does not answer" in second
    by_variable = run(file, "list", "-C", "first", AWS_ENDPOINT_URL="http://127.0.0.1:3")
    assert "127.0.0.1:3 does not answer" in by_variable.stderr
    shown = run(file, "config", "show")
    assert f"in {tmp_path}/secret" in shown.stdout
    assert "printed by echo ..." in shown.stdout
    for outcome in (listed, by_variable, shown):
        assert not re.search("s3cr3t|t0ken", outcome.stdout + outcome.stderr)
    secret.chmod(0o640)
    assert_failed(run(file, "list", "-C", "first"), USAGE, ":10: .*others than its owner can read", "chmod 600")
    broken = write(tmp_path / "broken.toml", file.read_text().replace("echo t0ken", "exit 3"))
    assert_failed(run(broken, "list", "-C", "second"), USAGE, ":16: .*ended with code 3")


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ('AWS_SECRET_ACCESS_KEY = "x9x9"', "is a secret"),
        ('AZURE_STORAGE_SAS_TOKEN = "x9x9"', "is a secret"),
        ('GOOGLE_SERVICE_ACCOUNT_KEY = "x9x9"', "is a secret"),
        ('AWS_ENDPOINT_URL = "https://u:x9x9@host"', "is a secret"),
        ('PATH = "/x9x9"', "no variable of an object store"),
        ("AWS_REGION = 3", "is no text"),
        ('AWS_SESSION_TOKEN = { file = "x9x9" }', "begins with no /|is no text"),
    ],
)
def test_no_other_variables_and_no_secrets_are_in_a_file(tmp_path: Path, repo: Path, line: str, cause: str) -> None:
    file = write(tmp_path / "v.toml", f'[cluster.main]\nrepo = "{repo}"\n[cluster.main.environment]\n{line}\n')
    assert_failed(run(file, "list", "-C", "main"), USAGE, f":4: .*({cause})")


def test_files_may_be_named_whose_names_sound_secret(tmp_path: Path, repo: Path) -> None:
    lines = ["AWS_WEB_IDENTITY_TOKEN_FILE = '/t'", "AWS_SSE_KMS_KEY_ID = 'k'", "AWS_SSE_BUCKET_KEY_ENABLED = 'true'"]
    text = "\n".join([f'[cluster.main]\nrepo = "{repo}"\n[cluster.main.environment]', *lines])
    assert run(write(tmp_path / "f.toml", text), "list", "-C", "main").code == 0


def test_a_flag_may_have_the_name_of_a_command(tmp_path: Path, repo: Path) -> None:
    file = write(tmp_path / "flag.toml", f'[cluster.main]\nrepo = "{repo}"\nmerge = true\nkeep-full = 1\n')
    assert_failed(run(file, "merge", "-C", "main"), FAILED, "no backup")
    assert run(file, "expire", "-C", "main").code == 0


# ---- each cluster in turn


def test_all_runs_for_each_and_ends_with_the_worst(file: Path, repo: Path) -> None:
    outcome = run(file, "list", "--all")
    assert outcome.code == FAILED
    assert outcome.stdout == "cluster main\nno backups\n\ncluster away\n"
    assert_nothing_raw(outcome)
    assert "cluster away ended with exit code 1" in outcome.stderr
    (repo / "backups" / "20261122T101530Z_full").mkdir()
    (repo / "backups" / "20261122T101530Z_full" / "backup.json").write_text("{}")
    verified = run(file, "verify", "--all", "--json")
    assert verified.code == VERIFICATION_FAILED
    main, away = json.loads(verified.stdout)["clusters"]
    assert (main["cluster"], main["exit_code"]) == ("main", VERIFICATION_FAILED)
    assert main["result"]["problems"]
    assert (away["exit_code"], away["result"], away["error"]["kind"]) == (FAILED, None, "ObjectNotFound")


def test_an_interruption_ends_all(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        tables = [
            f'[cluster.{name}]\nrepo = "{make_repository(tmp_path / name)}"\nhost = "127.0.0.1"\n'
            f"port = {hanging.getsockname()[1]}\n"
            for name in ("first", "second")
        ]
        file = write(tmp_path / "hanging.toml", "".join(tables))
        process = start_pgwal("status", "--all", "--config", file)
        connection, _ = hanging.accept()
        with connection:
            process.send_signal(signal.SIGTERM)
            outcome = finish(process)
    assert outcome.code == 128 + signal.SIGTERM
    assert outcome.stdout == "cluster first\n"
    assert_nothing_raw(outcome)


def test_all_is_refused_where_one_repository_would_stand_for_all(file: Path, repo: Path) -> None:
    assert_failed(run(file, "list", "--all", PGWAL_REPO=str(repo)), USAGE, "repository of all", "Unset")
    assert_failed(run(file, "list", "--all", "-C", "main"), USAGE, "exclude each other")
    by_option = run(file, "expire", "--all", "--repo", repo)
    assert by_option.code == USAGE
    assert by_option.stderr.count("would be the repository of all") == 2
    assert_failed(run_pgwal("list", "--all"), USAGE, "no configuration file")


# ---- the tables of options


def test_every_option_is_in_one_of_the_tables() -> None:
    names = {name for command in all_commands() for name in command.by_name} - {"password"}
    assert names == CLUSTER_OPTIONS | CALL_OPTIONS
    assert not CLUSTER_OPTIONS & CALL_OPTIONS


OF_DIFFERENT_WORDS = {"compress", "jobs"}


@pytest.mark.parametrize("name", sorted(CLUSTER_OPTIONS - OF_DIFFERENT_WORDS))
def test_a_clusters_option_means_the_same_in_all_commands(name: str) -> None:
    meanings = {option.help for command in all_commands() if (option := command.for_cluster(name)) is not None}
    assert len(meanings) == 1, "name the commands in OF_ANOTHER_MEANING where the option is another one"


def test_the_exceptions_are_there() -> None:
    commands = {" ".join(command.words): command for command in all_commands()}
    for name, exceptions in OF_ANOTHER_MEANING.items():
        assert any(name in commands[each].by_name for each in exceptions if each in commands)


def test_no_command_of_this_test_reads_a_file_of_the_machine() -> None:
    assert "PGWAL_CONFIG" not in environment()
