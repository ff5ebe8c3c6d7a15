"""How a command that fails says so: three readable lines and an exit code.

Belongs here: printing errors of the command line. Does not belong here: commands (`cli`).
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, ParamSpec

import typer
from rich.markup import escape

from orchestration.config import load_config
from orchestration.console import CONSOLE
from serving.errors import UnderstudyError

P = ParamSpec("P")


def explain_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn our errors into three readable lines and exit code 2, an interrupt into code 130."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except UnderstudyError as error:
            fail(error)
        except BrokenPipeError:
            raise  # `understudy report | head`: typer knows what to do
        except OSError as error:
            from orchestration.failures import explain_os_error

            fail(explain_os_error(error, _find_home()))
        except Exception as error:
            from orchestration.failures import explain_os_error, read_storage_error

            home = _find_home()
            known = read_storage_error(str(error), home)
            if known is None:
                raise
            fail(explain_os_error(known, home))
        except KeyboardInterrupt:
            CONSOLE.print(
                "\n[yellow]Interrupted.[/] What was bought and made so far is kept; run again."
            )
            raise typer.Exit(130) from None

    return wrapped


def fail(error: UnderstudyError) -> NoReturn:
    """Print an error in its parts and exit with code 2."""
    CONSOLE.print(f"[red bold]Failed[/] while {escape(error.attempted)}", soft_wrap=True)
    for label, text in (
        ("expected", error.expected),
        ("found", error.found),
        ("next", error.next_step),
    ):
        CONSOLE.print(f"  [dim]{label:>8}[/]  ", end="")
        CONSOLE.print(text, markup=False, soft_wrap=True)
    raise typer.Exit(2)


def _find_home() -> Path:
    try:
        return load_config().home
    except (UnderstudyError, OSError):
        return Path.cwd()
