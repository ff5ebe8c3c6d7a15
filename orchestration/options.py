"""Options that several commands share.

Belongs here: an option's type and its help. Does not belong here: commands (`cli`, `*_cli`).
"""

from typing import Annotated

import typer

Port = Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
