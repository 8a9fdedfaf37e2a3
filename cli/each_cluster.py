"""``--all``: a command for each cluster of the configuration file in turn."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from pgwal_cli.cluster_command import Chosen
from pgwal_cli.exit_codes import INTERRUPTED
from pgwal_cli.output import ERROR_LINE, print_json

_WORST_FIRST = (5, 4, 1, 2, 3, 6, 0)
"""Exit codes: what is damaged, what is missing, what failed, what is misunderstood, what may go away by itself."""


def run_for_each(
    names: Sequence[str], arguments: Sequence[str], run: Callable[[list[str], Chosen], int], *, as_json: bool
) -> int:
    """Run a command line that has --all for each cluster in turn, and return the worst exit code.

    What one cluster fails with is said, and the next one has its turn.
    """
    codes: list[int] = []
    documents = []
    for name in names:
        own = [f"--cluster={name}" if argument == "--all" else argument for argument in arguments]
        if as_json:
            code, document = _collect(own, run)
            documents.append({"cluster": name, "exit_code": code, **document})
        else:
            print(("\n" if codes else "") + f"cluster {name}", flush=True)
            code = run(own, Chosen(of_all=True))
            if code not in (0, INTERRUPTED):
                print(f"pgwal: cluster {name} ended with exit code {code}", file=sys.stderr)
        codes.append(code)
        if code == INTERRUPTED:
            return code
    if as_json:
        print_json({"version": 1, "clusters": documents})
        sys.stdout.flush()
    return next((code for code in _WORST_FIRST if code in codes), max(codes))


def _collect(arguments: list[str], run: Callable[[list[str], Chosen], int]) -> tuple[int, dict[str, Any]]:
    """Run a command for one cluster and return its exit code, its document and its error."""
    printed, said = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(said):
        code = run(arguments, Chosen(of_all=True))
    error = None
    for line in said.getvalue().splitlines():
        if line.startswith(ERROR_LINE):
            error = json.loads(line)["error"]
        else:
            print(line, file=sys.stderr)
    text = printed.getvalue()
    return code, {"result": json.loads(text) if text else None, "error": error}
