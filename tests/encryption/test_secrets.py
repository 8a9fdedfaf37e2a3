"""Where secrets are not: in core files, in what is said of wrong keys, and where a restored server would have them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_main_job import PGWAL

from pgwal.encryption.age import Identity
from pgwal.encryption.key_files import identities_of, write_identity
from pgwal.encryption.key_sources import KeySources
from pgwal.errors import KeyRequired, WrongKey


def leaves_core_file(command: list[str], directory: Path) -> bool:
    """Run a command that is killed by SIGABRT, with no limit to core files; tell whether the kernel made one of it."""
    directory.mkdir()
    unlimited = ["sh", "-c", 'ulimit -c unlimited && exec "$@"', "sh", *command]
    process = subprocess.Popen(unlimited, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.stderr is not None
    with process.stderr as errors:
        assert os.WIFSIGNALED(status), errors.read().decode()
    return os.WCOREDUMP(status)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit alone keeps core files away")
def test_a_process_that_has_a_key_leaves_no_core_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    if not leaves_core_file([sys.executable, "-c", "import os; os.abort()"], tmp_path / "any"):
        pytest.skip("this machine makes no core files of any process")
    identity = Identity.generate()
    write_identity(tmp_path / "identity", identity)
    subprocess.run([*PGWAL, "init", "--repo", tmp_path / "repo", "--recipient", identity.recipient], check=True)
    list_keys = [*PGWAL, "key", "list", "--repo", str(tmp_path / "repo")]
    (metadata_key,) = (tmp_path / "config" / "pgwal" / "metadata-keys").iterdir()
    # It is killed when it has the metadata key, and asks for the identity as well.
    kill = f"kill -ABRT $PPID; cat {shlex.quote(str(tmp_path / 'identity'))}"
    change = ["key", "add", "--repo", str(tmp_path / "repo"), "--recipient", Identity.generate().recipient]
    assert not leaves_core_file([*PGWAL, *change, "--identity-command", kill], tmp_path / "both")
    metadata_key.unlink()
    assert not leaves_core_file([*list_keys, "--identity-command", kill], tmp_path / "identity-alone")


@pytest.mark.parametrize("way", ["file", "command"])
def test_a_private_key_in_place_of_its_file_is_refused_and_not_repeated(way: str) -> None:
    secret = Identity.generate().secret()
    sources = KeySources(Path(secret)) if way == "file" else KeySources(identity_command=f"echo {secret.lower()}")
    with pytest.raises(WrongKey, match="in place of the file") as caught:
        identities_of(sources)
    assert secret[16:].lower() not in f"{caught.value} {caught.value.hint} {caught.value.facts}".lower()


def test_what_is_in_a_command_is_not_repeated() -> None:
    with pytest.raises(KeyRequired) as caught:
        identities_of(KeySources(identity_command="token=much-too-open; exit 3"))
    assert "much-too-open" not in f"{caught.value} {caught.value.hint} {caught.value.facts}"
