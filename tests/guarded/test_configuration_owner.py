"""A configuration file of another user, who could have this one run anything: it is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pgwal_process import assert_failed, run_pgwal

from pgwal_cli.exit_codes import USAGE


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pgwal.toml"
    file.write_text("")
    file.chmod(0o644)
    os.chown(file, 12345, -1)
    assert_failed(run_pgwal("list", "--config", file), USAGE, "belongs to user 12345", "root")
