"""Options that several commands share.

Belongs here: an option's type and its help. Does not belong here: commands (`cli`, `*_cli`).
"""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
