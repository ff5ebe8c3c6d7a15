"""Importing dagster-dbt without dbt itself, which is most of what loading the code location costs.

dbt runs as a program of its own, and dagster-dbt is made to work where no dbt can be imported (as
with dbt Fusion). Belongs here: that import. Does not belong here: the marts (`assets/traces`).
"""

import importlib
import sys


def import_dagster_dbt() -> None:
    """Import dagster-dbt as if dbt were not importable, unless either is imported already.

    It reads from dbt some enumerations, of which it brings its own; the import costs more than
    Dagster's and all of this project's.
    """
    if "dbt" in sys.modules or "dagster_dbt" in sys.modules:
        return
    sys.modules["dbt"] = None  # type: ignore[assignment]  # how Python says: not to be found
    try:
        importlib.import_module("dagster_dbt")
    finally:
        del sys.modules["dbt"]
