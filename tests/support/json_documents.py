"""Which document each command prints with ``--json``, its schema, and how the output of the tests is held to it.

The types in pgwal_cli's modules of documents say which members there are, docs/json.md what each name means: the
schemas in docs/schemas are made of both.  Run as a program, this writes them anew.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from jsonschema import Draft202012Validator

from pgwal_cli import condition_documents, documents, restore_documents, wal_documents
from pgwal_cli.main import command_word

DOCS = Path(__file__).parent.parent.parent / "docs"
SCHEMAS = DOCS / "schemas"
ERROR, REPORT = "error", "verification-report"
DOCUMENTS: dict[str, Any] = {
    "all-clusters": condition_documents.AllClustersDocument,
    "audit": wal_documents.AuditDocument,
    "backup": documents.BackupDocument,
    "backup-dry-run": documents.BackupForecastDocument,
    "check": condition_documents.CheckDocument,
    "combine": restore_documents.CombineDocument,
    "config-check": condition_documents.ConfigCheckDocument,
    "config-show": condition_documents.ConfigShowDocument,
    "copy": documents.CopyDocument,
    "delete": documents.DeleteDocument,
    "demo": documents.DemoDocument,
    ERROR: documents.ErrorDocument,
    "expire": documents.ExpireDocument,
    "export": documents.ExportDocument,
    "grants": documents.GrantsDocument,
    "import": wal_documents.ImportDocument,
    "init": documents.InitDocument,
    "inspect": wal_documents.RecordDocument,
    "inspect-stats": wal_documents.RecordStatisticsDocument,
    "key": documents.KeysDocument,
    "key-generate": documents.IdentityDocument,
    "list": documents.ListDocument,
    "map": wal_documents.MapDocument,
    "merge": documents.MergeDocument,
    "pin": documents.PinDocument,
    "restore": restore_documents.RestoreDocument,
    "restore-dry-run": restore_documents.RestoreForecastDocument,
    "show": documents.ShowDocument,
    "status": condition_documents.StatusDocument,
    "summarize": wal_documents.SummarizeDocument,
    REPORT: restore_documents.VerificationReportDocument,
    "verify": restore_documents.VerifyDocument,
}
"""The type of each document, by the name of its schema."""
_OF_COMMANDS = {
    "full": "backup",
    "incremental": "backup",
    "unpin": "pin",
    "key generate": "key-generate",
    "key list": "key",
    "key add": "key",
    "key remove": "key",
    "key metadata": "key",
    "config check": "config-check",
    "config show": "config-show",
}
_WITH_OPTIONS = {
    ("incremental", "--dry-run"): "backup-dry-run",
    ("backup", "--dry-run"): "backup-dry-run",
    ("restore", "--dry-run"): "restore-dry-run",
    ("inspect", "--stats"): "inspect-stats",
}
_MAY_BE_NEGATIVE = ("safe_wal_bytes",)
"""The server says it, of a slot that it may give up at its next checkpoint."""
_LSN = "^[0-9A-F]{1,8}/[0-9A-F]{1,8}$"
_TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"
_PATTERNS = {"_lsn": (_LSN, None), "_at": (_TIME, "date-time"), "system_identifier": ("^[0-9]+$", None)}


def document_name(arguments: Sequence[str]) -> str:
    """Return which document a command line prints."""
    if "--all" in arguments:
        return "all-clusters"
    command = command_word(arguments)
    assert command is not None
    for (of_command, option), name in _WITH_OPTIONS.items():
        if command == of_command and option in arguments:
            return name
    if command in ("key", "config"):
        command = " ".join((command, next(word for word in arguments[list(arguments).index(command) + 1 :])))
    return _OF_COMMANDS.get(command, command)


# ---- schemas


@cache
def meanings() -> dict[str, str]:
    """Return what docs/json.md says of each member, by its name."""
    names = (DOCS / "json.md").read_text(encoding="utf-8").partition("## Names\n")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", names, re.MULTILINE)
    assert len(dict(rows)) == len(rows), "a member has two meanings"
    return dict(rows)


def members(document: Any) -> dict[str, Any]:
    """Return the type of each member of a document, whether or not it may be left out."""
    return get_type_hints(document)


def schema_of(document: Any, name: str) -> dict[str, Any]:
    """Return the JSON Schema of a document; what it is made of is below ``$defs``."""
    parts: dict[str, Any] = {}
    schema = _object_schema(document, parts)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"pgwal: {name}, version {get_args(members(document)['version'])[0]}",
        **schema,
        "$defs": {each: parts[each] for each in sorted(parts)},
    }


def _object_schema(document: Any, parts: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [name for name in members(document) if name in document.__required_keys__],
        "properties": {
            name: {"description": meanings()[name], **_schema(hint, name, parts)}
            for name, hint in members(document).items()
        },
    }


def _schema(hint: Any, name: str, parts: dict[str, Any]) -> dict[str, Any]:
    if is_typeddict(hint):
        if hint.__name__ not in parts:
            parts[hint.__name__] = {}
            parts[hint.__name__] = _object_schema(hint, parts)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        choices = [_schema(choice, name, parts) for choice in arguments]
        if len(choices) == 2 and {"type": "null"} in choices and "type" in choices[0]:
            return {**choices[0], "type": [choices[0]["type"], "null"]}
        return {"anyOf": choices}
    if origin is Literal:
        return {"const": arguments[0]} if len(arguments) == 1 else {"type": "string", "enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], name, parts)}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _schema(arguments[1], name, parts)}
    return {} if hint is Any else scalar_schema(hint, name)


def scalar_schema(hint: Any, name: str) -> dict[str, Any]:
    """Return the schema of one value, which follows from its type and the end of its name."""
    if hint is NoneType:
        return {"type": "null"}
    if hint is bool:
        return {"type": "boolean"}
    if hint is int:
        return {"type": "integer"} | ({} if name in _MAY_BE_NEGATIVE else {"minimum": 0})
    if hint is float:
        # A clock may have been set back meanwhile.
        return {"type": "number"}
    assert hint is str, f"{name}: {hint}"
    for end, (pattern, form) in _PATTERNS.items():
        if f"_{name}".endswith(end):
            return {"type": "string", "pattern": pattern} | ({} if form is None else {"format": form})
    return {"type": "string"}


def schema_text(name: str) -> str:
    """Return the content of a schema's file."""
    return json.dumps(schema_of(DOCUMENTS[name], name), indent=2) + "\n"


# ---- real output


@cache
def _validator(name: str) -> Draft202012Validator:
    # That a time is one is in its pattern: formats need a library more, and are no part of what is validated.
    return Draft202012Validator(json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8")))


def validate(name: str, document: Any) -> None:
    """Check a document against its published schema; of several clusters also that each has the command's own."""
    problems = [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in _validator(name).iter_errors(document)]
    assert not problems, f"{name}: {problems}\n{json.dumps(document, indent=2)[:4000]}"


def hold_to_schemas(arguments: Sequence[str], code: int, stdout: str, stderr: str) -> list[str]:
    """Check all JSON that a command printed against the published schemas, and return the names of these.

    A command that was ended by a signal may have left half a document.
    """
    arguments = [str(argument) for argument in arguments]
    if "--json" not in arguments or code < 0 or code > 128:
        return []
    found = []
    for line in stderr.splitlines():
        if line.startswith("{"):
            validate(ERROR, json.loads(line))
            found.append(ERROR)
    if stdout:
        name = document_name(arguments)
        for document in map(json.loads, stdout.splitlines() if name == "inspect" else [stdout]):
            validate(name, document)
            if name == "all-clusters":
                own = document_name([argument for argument in arguments if argument != "--all"])
                for result in (each["result"] for each in document["clusters"] if each["result"] is not None):
                    validate(own, result)
        found.append(name)
    return found


if __name__ == "__main__":
    SCHEMAS.mkdir(exist_ok=True)
    for each in DOCUMENTS:
        (SCHEMAS / f"{each}.json").write_text(schema_text(each), encoding="utf-8")
    print(f"{len(DOCUMENTS)} schemas in {SCHEMAS}", file=sys.stderr)
