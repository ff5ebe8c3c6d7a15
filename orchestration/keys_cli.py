"""The commands `understudy keys …`: API keys of the server, made, listed and revoked.

Belongs here: arguments and what is printed. Does not belong here: keys (`serving.access.keys`).
"""

import json
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from orchestration.config import load_config
from orchestration.console import CONSOLE
from orchestration.explaining import explain_errors
from orchestration.options import Json
from serving.access.keys import DEFAULT_SCOPES, SCOPES, ApiKey, create_key, read_keys, revoke_key
from serving.access.ring import RELOAD_SECONDS
from serving.home import Home

LONGEST_DAYS = 36_525  # a hundred years: longer is a slip, and 0 never ends
keys_app = typer.Typer(help="API keys of the server.", no_args_is_help=True)


@keys_app.command("create", epilog="Example: understudy keys create --tenant support --days 90")
@explain_errors
def create(
    tenant: Annotated[str, typer.Option(help="Who it is for: 1-32 of a-z 0-9 _ -.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(SCOPES)}; repeatable.", show_default=False),
    ] = None,
    env: Annotated[
        str, typer.Option(help="Traffic of another env than prod never trains.")
    ] = "prod",
    days: Annotated[
        int, typer.Option(help="Days until it expires; 0 never does.", min=0, max=LONGEST_DAYS)
    ] = 365,
    requests_per_minute: Annotated[int, typer.Option(help="Of this key, by server.", min=1)] = 120,
    teacher_calls_per_minute: Annotated[
        int, typer.Option(help="Granted prefer_quality.", min=0)
    ] = 10,
    teacher_calls_per_day: Annotated[
        int, typer.Option(help="Granted prefer_quality.", min=0)
    ] = 200,
    as_json: Json = False,
) -> None:
    """Make a key. It is printed once; only its hash is kept."""
    made = create_key(
        Home(load_config().home).keys,
        tenant=tenant,
        scopes=scope or DEFAULT_SCOPES,
        valid_days=days or None,
        env=env,
        requests_per_minute=requests_per_minute,
        teacher_calls_per_minute=teacher_calls_per_minute,
        teacher_calls_per_day=teacher_calls_per_day,
    )
    if as_json:
        sys.stdout.write(json.dumps({"key": made.text, **_describe(made.entry)}) + "\n")
        return
    sys.stdout.write(made.text + "\n")
    CONSOLE.print(
        f"[dim]Shown once. Send it as `Authorization: Bearer …`; it opens "
        f"{escape(', '.join(made.entry.scopes))}. From now on every request needs a key; running "
        f"servers know it within {RELOAD_SECONDS:.0f} s.[/]",
        soft_wrap=True,
    )


@keys_app.command("list", epilog="Example: understudy keys list --json")
@explain_errors
def list_keys(as_json: Json = False) -> None:
    """List keys: their public ids, never their secrets."""
    keys = read_keys(Home(load_config().home).keys)
    if as_json:
        sys.stdout.write(json.dumps([_describe(key) for key in keys]) + "\n")
        return
    if not keys:
        CONSOLE.print("No keys yet: a server on loopback is open to this machine.")
        return
    table = Table(box=None)
    for name in ("key id", "tenant", "env", "scopes", "state", "expires"):
        table.add_column(name)
    for key in keys:
        state = key.describe_refusal(datetime.now(UTC)) or "valid"
        expires = key.expires_at.date().isoformat() if key.expires_at else "never"
        table.add_row(key.key_id, key.tenant, key.env, " ".join(key.scopes), state, expires)
    CONSOLE.print(table)


@keys_app.command("revoke", epilog="Example: understudy keys revoke 3f9c0a1b2c4d")
@explain_errors
def revoke(
    key_id: Annotated[str, typer.Argument(help="The public id, as `understudy keys list` says.")],
) -> None:
    """Revoke a key for good."""
    key = revoke_key(Home(load_config().home).keys, key_id)
    CONSOLE.print(
        f"Revoked {key.key_id} of {escape(key.tenant)}; running servers refuse it within "
        f"{RELOAD_SECONDS:.0f} s."
    )


def _describe(key: ApiKey) -> dict[str, object]:
    content: dict[str, object] = key.model_dump(mode="json", exclude={"secret_sha256"})
    return content
