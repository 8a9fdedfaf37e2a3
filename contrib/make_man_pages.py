"""Write the man page of each command, from what its help says: ``python contrib/make_man_pages.py DIRECTORY``.

For packagers, and for ``MANPATH``; needs ``pip install "pgwal[docs]"``.  The date is that of SOURCE_DATE_EPOCH, where
that is set.
"""

from __future__ import annotations

import argparse
import re
from inspect import cleandoc
from pathlib import Path
from typing import Any

from click_man.man import ManPage
from typer.main import get_command

from pgwal import __version__
from pgwal_cli.main import make_app


def main() -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="made if it is not there")
    directory: Path = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    write_pages(get_command(make_app()), "pgwal", None, directory)


def write_pages(command: Any, name: str, parent: Any, directory: Path) -> None:
    """Write the page of ``command``, and those of the commands below it."""
    context = command.context_class(command, info_name=name, parent=parent)
    below = getattr(command, "commands", {})
    page = ManPage(context.command_path)
    page.version = __version__
    text = cleandoc(command.help)
    page.short_help = _roff(re.split(r"\.\s", text.replace("\n", " "), maxsplit=1)[0].removesuffix("."))
    page.synopsis = " ".join(command.collect_usage_pieces(context))
    page.description = _roff(text)
    records = [each.get_help_record(context) for each in command.params if each.param_type_name == "option"]
    # It escapes hyphens of spellings itself.
    page.options = [(spelling.replace("\\", r"\e"), _roff(meaning)) for spelling, meaning in records]
    page.commands = [(each, _roff(below[each].get_short_help_str(limit=200))) for each in below]
    (directory / f"{context.command_path.replace(' ', '-')}.1").write_text(f"{page}\n", encoding="utf-8")
    for each, subcommand in below.items():
        write_pages(subcommand, each, context, directory)


def _roff(text: str) -> str:
    """Return ``text`` such that no part of it is taken for a request or an escape, and options can be copied."""
    return re.sub(r"(?m)^(?=[.'])", r"\\&", text.replace("\\", r"\e").replace("-", r"\-"))


if __name__ == "__main__":
    main()
