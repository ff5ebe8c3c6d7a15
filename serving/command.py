"""The command `understudy-serve` of the server's own package: serve, or look after API keys.

For a machine that has the server and not the platform, whose `understudy keys` does the same. The
settings come from the environment. Belongs here: arguments and what is printed. Does not belong
here: keys (`access.keys`), serving (`app`), what variables there are (`settings`).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from serving.access.keys import DEFAULT_SCOPES, SCOPES, ApiKey, create_key, read_keys, revoke_key
from serving.errors import UnderstudyError
from serving.settings import load_settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve what the environment says, or do what the arguments say.

    Raises:
        SystemExit: with the reason, when the release, a setting or an argument is not what it has
            to be.
    """
    given = _make_parser().parse_args(arguments)
    try:
        settings = load_settings()
        if given.verb is None:
            from serving.app import run  # seconds of imports that looking after keys does not need

            run(settings)
        else:
            sys.stdout.write(_look_after_keys(settings.keys_folder, given) + "\n")
    except UnderstudyError as error:
        raise SystemExit(str(error)) from None


def _look_after_keys(folder: Path, given: argparse.Namespace) -> str:
    """Do what is asked of the keys, and return what is printed."""
    if given.action == "create":
        made = create_key(
            folder,
            tenant=given.tenant,
            scopes=given.scope or DEFAULT_SCOPES,
            valid_days=given.days or None,
            env=given.env,
            requests_per_minute=given.requests_per_minute,
            teacher_calls_per_minute=given.teacher_calls_per_minute,
            teacher_calls_per_day=given.teacher_calls_per_day,
        )
        return made.text
    if given.action == "revoke":
        return _describe(revoke_key(folder, given.key_id))
    return "\n".join(_describe(key) for key in read_keys(folder))


def _describe(key: ApiKey) -> str:
    content: dict[str, object] = key.model_dump(mode="json", exclude={"secret_sha256"})
    state = key.describe_refusal(datetime.now(UTC)) or "valid"
    return json.dumps(content | {"state": state})


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="understudy-serve",
        description="Without arguments: serve the release in $UNDERSTUDY_HOME as the variables "
        "UNDERSTUDY_SERVE_* say.",
    )
    verbs = parser.add_subparsers(dest="verb")
    keys = verbs.add_parser("keys", help="make, list and revoke API keys")
    actions = keys.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="make a key and print it, once")
    create.add_argument("--tenant", required=True, help="who it is for: 1-32 of a-z 0-9 _ -")
    create.add_argument(
        "--scope",
        action="append",
        choices=SCOPES,
        help=f"repeatable; by default {' and '.join(DEFAULT_SCOPES)}",
    )
    create.add_argument("--env", default="prod", help="traffic of another env never trains")
    create.add_argument("--days", type=int, default=365, help="until it expires; 0: never")
    create.add_argument("--requests-per-minute", type=int, default=120)
    create.add_argument("--teacher-calls-per-minute", type=int, default=10)
    create.add_argument("--teacher-calls-per-day", type=int, default=200)
    actions.add_parser("list", help="print one JSON object a key, never a secret")
    revoke = actions.add_parser("revoke", help="revoke a key for good")
    revoke.add_argument("key_id", help="the public id, as `understudy-serve keys list` says")
    return parser


if __name__ == "__main__":
    main()
