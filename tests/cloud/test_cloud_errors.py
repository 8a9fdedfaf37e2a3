"""What goes wrong with an object store: what is said, what to do, the exit code, and nothing that is secret."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cloud.test_object_lock import THIRD_FULL, build
from pgwal_process import PGWAL, Outcome, run_pgwal
from support.seaweedfs import SECRET_KEY, SeaweedFS, running

from pgwal.errors import RepositoryError, StoreUnavailable
from pgwal.repository import cloud_place
from pgwal.repository.address import place_at

READ_ONLY, READ_ONLY_SECRET = "reader", "reader-secret"
LIFE = ("--keep-full", "1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A server of its own, which has another user."""
    users = {READ_ONLY: (READ_ONLY_SECRET, ["Read:bucket", "List:bucket"])}
    with running(tmp_path_factory.mktemp("seaweedfs"), identities=users) as made:
        made.create_bucket("bucket")
        yield made


@pytest.fixture
def variables(server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def fails(
    *arguments: str,
    code: int,
    message: str,
    hint: str,
    store_code: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a command that must fail so, and look for secrets in all that it says."""
    outcome = run_pgwal(*arguments, env=env)
    assert outcome.code == code, outcome.stderr
    assert message in outcome.errors[0]
    assert hint in outcome.hints[0]
    as_json = run_pgwal(*arguments, "--json", env=env)
    (document,) = (json.loads(line)["error"] for line in as_json.stderr.splitlines() if line.startswith("{"))
    assert document["exit_code"] == code
    assert document["transient"] == (code == 3)
    assert document["facts"].get("store_code") == store_code
    for said in (outcome, as_json):
        assert "secret" not in (said.stdout + said.stderr).replace("secret key", "").replace("SECRET_ACCESS_KEY", "")
        assert SECRET_KEY not in said.stdout + said.stderr
    return outcome


@pytest.mark.parametrize("command", ["list", "init"])
def test_the_wrong_secret(variables: pytest.MonkeyPatch, command: str) -> None:
    variables.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    fails(
        command, "--repo", "s3://bucket/repo", code=1, message="SignatureDoesNotMatch", hint="AWS_SECRET_ACCESS_KEY",
        store_code="SignatureDoesNotMatch",
    )  # fmt: skip


def test_the_wrong_key(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("AWS_ACCESS_KEY_ID", "nobody")
    fails(
        "list", "--repo", "s3://bucket/repo", code=1, message="InvalidAccessKeyId", hint="AWS_ACCESS_KEY_ID",
        store_code="InvalidAccessKeyId",
    )  # fmt: skip


@pytest.mark.parametrize("command", ["list", "init"])
def test_a_bucket_that_is_not_there(variables: pytest.MonkeyPatch, command: str) -> None:  # noqa: ARG001
    fails(
        command, "--repo", "s3://no-bucket/repo", code=1, message="NoSuchBucket", hint="Make the bucket first",
        store_code="NoSuchBucket",
    )  # fmt: skip


def test_a_repository_that_is_not_there(variables: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    fails(
        "list", "--repo", "s3://bucket/nothing", code=1, message="there is no repository in s3://bucket/nothing",
        hint="check --repo",
    )  # fmt: skip


@pytest.mark.parametrize("minutes", [-20, 20], ids=["slow", "fast"])
def test_a_clock_that_is_wrong(variables: pytest.MonkeyPatch, tmp_path: Path, minutes: int) -> None:  # noqa: ARG001
    library, source = tmp_path / "shifted_clock.so", Path(__file__).parent.parent / "support" / "shifted_clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    fails(
        "list", "--repo", "s3://bucket/repo", code=1, message="RequestTimeTooSkewed", hint="Set the clock",
        store_code="RequestTimeTooSkewed",
        env={"LD_PRELOAD": str(library), "PGWAL_TEST_CLOCK_SHIFT": str(60 * minutes)},
    )  # fmt: skip


def test_who_may_only_read(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("AWS_ACCESS_KEY_ID", READ_ONLY)
    variables.setenv("AWS_SECRET_ACCESS_KEY", READ_ONLY_SECRET)
    fails(
        "init", "--repo", "s3://bucket/repo", code=1, message="AccessDenied", hint="the right to do this",
        store_code="AccessDenied",
    )  # fmt: skip


def test_who_may_only_read_reads_all_the_same(variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    address = "s3://bucket/read-only"
    build(place_at(address))
    variables.setenv("AWS_ACCESS_KEY_ID", READ_ONLY)
    variables.setenv("AWS_SECRET_ACCESS_KEY", READ_ONLY_SECRET)
    for command in (
        ["list", "--repo", address],
        ["show", THIRD_FULL, "--repo", address],
        ["verify", "--repo", address],
        ["restore", THIRD_FULL, "--repo", address, "-D", str(tmp_path / "restored")],
        ["export", THIRD_FULL, "--repo", address, "-o", str(tmp_path / "exported")],
    ):
        outcome = run_pgwal(*command)
        assert outcome.code == 0, outcome.stderr
        assert ("nothing keeps" in outcome.stderr) == (command[0] in ("verify", "restore", "export"))
    assert (tmp_path / "restored" / "PG_VERSION").exists()
    fails(
        "expire", "--keep-full", "1", "--repo", address, code=1, message="AccessDenied", hint="the right to do this",
        store_code="AccessDenied",
    )  # fmt: skip


def test_a_store_that_is_not_there(variables: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        variables.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        fails(
            "list",
            "--repo",
            "s3://bucket/repo",
            code=3,
            message="cannot read s3://bucket/repo",
            hint="AWS_ENDPOINT_URL",
        )


@pytest.mark.parametrize("word", ["secret", "half@secret"])
@pytest.mark.parametrize(("start", "end"), [("http://user:", ""), ("https://user:", "/x?sig=secret"), ("htp://u:", "")])
def test_a_password_in_the_address(monkeypatch: pytest.MonkeyPatch, start: str, end: str, word: str) -> None:
    monkeypatch.setattr(cloud_place, "REQUEST_RETRIES", 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        for name, value in {
            "AWS_ENDPOINT_URL": f"{start}{word}@127.0.0.1:{free.getsockname()[1]}{end}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RepositoryError) as raised:
            place_at("s3://bucket/repo").store.get("pgwal.json")
    assert not any(part in str(raised.value) for part in ("secret", "half", "user"))


@pytest.mark.parametrize("access", ["SAS_KEY", "ACCESS_KEY"])
def test_a_store_that_is_not_there_whose_address_is_kept_back(monkeypatch: pytest.MonkeyPatch, access: str) -> None:
    """The library does not repeat an address that grants access, whatever it is wrong with."""
    monkeypatch.setattr(cloud_place, "REQUEST_RETRIES", 0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        for name, value in {
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{free.getsockname()[1]}",
            "AZURE_ALLOW_HTTP": "true",
            "AZURE_STORAGE_ACCOUNT_NAME": "account",
            f"AZURE_STORAGE_{access}": {"SAS_KEY": "sv=1&sig=secret", "ACCESS_KEY": "c2VjcmV0"}[access],
        }.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StoreUnavailable, match=r"does not answer: (Connection refused|error sending)") as raised:
            place_at("az://container/repo").store.get("pgwal.json")
    assert raised.value.hint is not None
    assert "secret" not in str(raised.value)


def test_a_name_that_is_nobodys(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("AWS_ENDPOINT_URL", "http://nothing.invalid:9")
    fails(
        "list",
        "--repo",
        "s3://bucket/repo",
        code=3,
        message="http://nothing.invalid:9 does not answer: dns error",
        hint="network",
    )


def test_a_store_without_tls_that_was_not_allowed(variables: pytest.MonkeyPatch) -> None:
    variables.delenv("AWS_ALLOW_HTTP")
    fails("list", "--repo", "s3://bucket/repo", code=1, message="without TLS", hint="AWS_ALLOW_HTTP")


@pytest.mark.parametrize(
    ("name", "value"),
    [("AWS_ENDPOINT_URL", "localhost:9"), ("AWS_ENDPOINT_URL", ""), ("AWS_ACCESS_KEY_ID", "key\n")],
    ids=["no-scheme", "empty", "line-break"],
)
def test_what_makes_the_library_panic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str) -> None:
    """A server takes 1 for the end of its WAL."""
    without_server = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    }
    for variable, given in (without_server | {name: value}).items():
        monkeypatch.setenv(variable, given)
    repo = ("--repo", "s3://bucket/repo")
    fails("list", *repo, code=1, message="cannot read s3://bucket/repo", hint="variables of the environment")
    with pytest.raises(RepositoryError, match="cannot write"):
        place_at(repo[1]).probe()
    wanted = ("000000010000000000000001", str(tmp_path / "RECOVERYXLOG"))
    for arguments in ((*repo, *wanted), (*wanted, *repo)):
        outcome = run_pgwal("fetch-wal", *arguments)
        assert outcome.code == 126
        assert "variables of the environment" in outcome.hints[0]


@contextmanager
def answering(status: int, code: str, message: str) -> Iterator[str]:
    """Serve what a store says that refuses everything.

    SeaweedFS cannot be brought to say all of it: it takes any region, has no credentials that expire, and says of a
    bucket that is full that it has met an internal error.
    """
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}"
        finally:
            http.shutdown()
            thread.join()


REFUSALS = [
    (400, "ExpiredToken", "The provided token has expired.", 1, "get new ones"),
    (
        403,
        "RequestTimeTooSkewed",
        "The difference between the times is too large.",
        1,
        "clock",
    ),
    (
        400,
        "InvalidRequest",
        "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters",
        1,
        "AWS_CHECKSUM_ALGORITHM=SHA256",
    ),
    (400, "AuthorizationHeaderMalformed", "The region 'us-east-1' is wrong; expecting 'eu-west-1'", 1, "AWS_REGION"),
    (403, "AccessDenied", "Access Denied", 1, "the right to do this"),
    (403, "QuotaExceeded", "The quota is used up.", 1, "quota"),
    (500, "InternalError", "We encountered an internal error, please try again.", 3, "no room"),
    (503, "SlowDown", "Please reduce your request rate.", 3, "try later"),
]


@pytest.mark.parametrize(("status", "code", "message", "exit_code", "hint"), REFUSALS, ids=[row[1] for row in REFUSALS])
def test_other_refusals(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, message: str, exit_code: int, hint: str
) -> None:
    with answering(status, code, message) as endpoint:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }.items():
            monkeypatch.setenv(name, value)
        outcome = run_pgwal("list", "--repo", "s3://bucket/repo", "--json")
    document = json.loads(outcome.stderr)["error"]
    assert outcome.code == document["exit_code"] == exit_code
    assert f"{code}: {message}" in document["message"]
    assert hint in document["hint"]
    assert document["facts"]["store_code"] == code
    assert SECRET_KEY not in outcome.stderr


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://host/x", "not in ftp://"),
        ("s3://", "names no bucket"),
        ("s3:/bucket/x", "It is s3://BUCKET/PREFIX"),
        ("gs:bucket", "It is gs://BUCKET/PREFIX"),
        ("s3://key:word@bucket/x", "names no bucket"),
        ("s3://bucket/a//b", "is no prefix"),
        ("s3://bucket/../b", "is no prefix"),
        ("s3://bucket/a?sig=word", "is no prefix"),
    ],
)
def test_what_is_no_address(address: str, message: str) -> None:
    outcome = run_pgwal("list", "--repo", address)
    assert outcome.code == 2
    assert message in " ".join(outcome.stderr.split())
    assert "word" not in outcome.stderr
    outcome = run_pgwal("list", env={"PGWAL_REPO": address})
    assert outcome.code == 2
    assert message in " ".join(outcome.stderr.split())


def test_the_library_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory needs none of it, and does not ask for it."""
    (tmp_path / "obstore.py").write_text("raise ImportError('not installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [*PGWAL, "list", "--repo"]
    for address, message in (("s3://bucket/repo", "needs obstore"), (str(tmp_path / "none"), "there is no repository")):
        finished = subprocess.run([*command, address], capture_output=True, text=True, check=False)
        assert finished.returncode == 1
        assert message in finished.stderr
        assert ('pip install "pgwal[cloud]"' in finished.stderr) == (message == "needs obstore")
    (tmp_path / "obstore.py").write_text("raise SystemExit('it was imported')")
    finished = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True, check=False)
    assert "there is no repository" in finished.stderr
