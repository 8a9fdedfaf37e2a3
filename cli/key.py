"""``pgwal key``: the keys of encrypted repositories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgwal_cli import options
from pgwal_cli.cluster_command import ClusterCommand
from pgwal_cli.key_options import with_keys
from pgwal_cli.output import print_json

if TYPE_CHECKING:
    from pgwal.engine.keys import KeyReport
    from pgwal_cli.documents import IdentityDocument, KeysDocument

Recipients = Annotated[
    list[str],
    typer.Option("--recipient", metavar="AGE_PUBLIC_KEY", help="A public key of age, age1...; may be repeated."),
]


def generate(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="File that must not be there yet.", readable=False)
    ],
    json: options.Json = False,
) -> None:
    """Make a private key, in a file that its owner alone may read, and print the public one."""
    from pgwal.encryption.age import Identity
    from pgwal.encryption.key_files import write_identity

    identity = Identity.generate()
    write_identity(output, identity)
    if json:
        document: IdentityDocument = {"version": 1, "path": str(output), "recipient": identity.recipient}
        print_json(document)
    else:
        print(identity.recipient)


def list_(repo: options.Repo, json: options.Json = False) -> None:
    """Show for whom a repository is encrypted."""
    from pgwal.engine.keys import list_keys

    _print(list_keys(repo), json)


def add(repo: options.Repo, recipient: Recipients, json: options.Json = False) -> None:
    """Have more recipients read all that is there and that comes; needs an identity. No data is read."""
    from pgwal.engine.keys import add_recipients

    _print(add_recipients(repo, recipient), json)


def remove(repo: options.Repo, recipient: Recipients, json: options.Json = False) -> None:
    """Have recipients read nothing that is stored from now on; needs the identity of one that stays."""
    from pgwal.engine.keys import remove_recipients

    _print(remove_recipients(repo, recipient), json)


def metadata(repo: options.Repo, json: options.Json = False) -> None:
    """Write the metadata key of a repository on this host, which needs it for backups; needs an identity."""
    from pgwal.engine.keys import restore_metadata_key

    _print(restore_metadata_key(repo), json)


def _print(report: KeyReport, as_json: bool) -> None:
    keyring, path = report
    if as_json:
        document: KeysDocument = {
            "version": 1,
            "encryption_id": keyring.repository_id,
            "recipients": list(keyring.recipients),
            "generation": keyring.content[-1].generation,
            "metadata_key_path": path,
        }
        print_json(document)
        return
    for recipient in keyring.recipients:
        print(recipient)
    print(f"metadata key on this machine: {path or 'none'}")


key = typer.Typer(
    name="key",
    help="Keys of encrypted repositories.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for command in (generate, list_, add, remove, metadata):
    key.command(command.__name__.rstrip("_"), cls=ClusterCommand)(with_keys(command))
