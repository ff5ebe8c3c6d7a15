"""Which assets a run would change: Dagster's code and data versions, read from the event log.

Belongs here: the decision, as a pure function over facts, and the reading of the facts. Does not
belong here: launching (`cli`).
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

CODE_VERSION_TAG = "dagster/code_version"
DATA_VERSION_TAG = "dagster/data_version"
INPUT_VERSION_PREFIX = "dagster/input_data_version/"
STATED_VERSION_PREFIX = "input_version/"
"""Metadata by which an asset states the version of an input itself: Dagster 1.13 records none for one
partition of an observable source."""


@dataclass(frozen=True, kw_only=True)
class Materialized:
    """What the event log remembers of an asset's latest materialization."""

    code_version: str | None
    data_version: str | None
    input_versions: Mapping[str, str]
    failed_checks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AssetState:
    """An asset as declared, and as last made (None: never)."""

    key: str
    code_version: str | None
    upstream: tuple[str, ...]
    latest: Materialized | None
    is_partitioned: bool = False
    source_version: str | None = None
    """The observed data version, for a source that is not materialized."""


@dataclass(frozen=True, kw_only=True)
class PlannedAsset:
    """An asset a run would make, and why."""

    key: str
    reason: str


def plan_run(states: Sequence[AssetState]) -> list[PlannedAsset]:
    """Return the assets whose materialization would differ, in the order given (upstream first)."""
    versions: dict[str, str | None] = {}
    planned: dict[str, PlannedAsset] = {}
    for state in states:
        if state.source_version is not None:
            versions[state.key] = state.source_version
            continue
        reason = _find_reason(state, planned, versions)
        if reason:
            planned[state.key] = PlannedAsset(key=state.key, reason=reason)
        versions[state.key] = _current_version(state)
    return list(planned.values())


def _current_version(state: AssetState) -> str | None:
    """Return the version a downstream asset would record: of a partition, Dagster hashes it again."""
    version = state.latest.data_version if state.latest else None
    if version is None or not state.is_partitioned:
        return version
    return hashlib.sha256(version.encode()).hexdigest()


def _strip_prefix(prefix: str, values: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }


def _find_reason(
    state: AssetState, planned: Collection[str], versions: Mapping[str, str | None]
) -> str:
    if state.latest is None:
        return "never made"
    if state.latest.code_version != state.code_version:
        return "its code or configuration changed"
    if state.latest.failed_checks:
        return f"its check {state.latest.failed_checks[0]} failed"
    for upstream in state.upstream:
        if upstream in planned:
            return f"{upstream} will change"
        if state.latest.input_versions.get(upstream) != versions.get(upstream):
            return f"{upstream} changed"
    return ""


def read_states(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    *,
    partition: str,
    sources: Mapping[dg.AssetKey, str],
) -> list[AssetState]:
    """Read declared and recorded facts of every asset, upstream first.

    Args:
        definitions: the code location.
        instance: where the event log is.
        partition: the recipe, for partitioned assets.
        sources: current data versions of the observable sources.
    """
    graph = definitions.resolve_asset_graph()
    checks: dict[dg.AssetKey, list[dg.AssetCheckKey]] = {}
    for check in graph.asset_check_keys:
        checks.setdefault(check.asset_key, []).append(check)
    states = []
    for key in graph.toposorted_asset_keys:
        node = graph.get(key)
        states.append(
            AssetState(
                key=key.to_user_string(),
                code_version=node.code_version,
                upstream=tuple(sorted(p.to_user_string() for p in node.parent_keys)),
                latest=_read_latest(
                    instance, key, partition if node.is_partitioned else None, checks.get(key, [])
                ),
                is_partitioned=node.is_partitioned,
                source_version=sources.get(key),
            )
        )
    return states


def _read_latest(
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    partition: str | None,
    checks: Sequence[dg.AssetCheckKey],
) -> Materialized | None:
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition] if partition else None),
        limit=1,
    ).records
    materialization = records[0].asset_materialization if records else None
    if materialization is None:
        return None
    tags = materialization.tags or {}
    return Materialized(
        code_version=tags.get(CODE_VERSION_TAG),
        data_version=tags.get(DATA_VERSION_TAG),
        input_versions={
            **_strip_prefix(INPUT_VERSION_PREFIX, tags),
            **_strip_prefix(
                STATED_VERSION_PREFIX,
                {n: str(entry.value) for n, entry in materialization.metadata.items()},
            ),
        },
        failed_checks=_read_failed_checks(instance, checks, after=records[0].timestamp),
    )


def _read_failed_checks(
    instance: dg.DagsterInstance, checks: Sequence[dg.AssetCheckKey], *, after: float
) -> tuple[str, ...]:
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(checks)
    failed = []
    for key, record in latest.items():
        if record.create_timestamp >= after and record.status.value != "SUCCEEDED":
            failed.append(key.name)
    return tuple(sorted(failed))
