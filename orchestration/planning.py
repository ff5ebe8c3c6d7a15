"""Which assets a run would change: Dagster's code and data versions, read from the event log.

Belongs here: the decision, as a pure function over facts, and the reading of the facts. Does not
belong here: launching (`running`), where what was made is stored.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import dagster as dg

CODE_VERSION_TAG = "dagster/code_version"
DATA_VERSION_TAG = "dagster/data_version"
INPUT_VERSION_PREFIX = "dagster/input_data_version/"
STATED_VERSION_PREFIX = "input_version/"
"""Metadata by which an asset states an input's version itself: Dagster 1.13 records none for one
partition of an observable source."""
CHECK_HISTORY = 200
"""Evaluations read per check to find the latest materialization's: recipes share one history."""

IsStored = Callable[[str, str | None], bool]
"""Says whether what an asset (key, partition) made still lies on disk."""


@dataclass(frozen=True, kw_only=True)
class Materialized:
    """What the event log remembers of an asset's latest materialization."""

    code_version: str | None
    data_version: str | None
    input_versions: Mapping[str, str]
    unpassed_checks: tuple[str, ...] = ()
    """Blocking checks that this very materialization has not passed; a warning stops nothing."""
    checked_against: Mapping[str, str | None] = field(default_factory=dict)
    """Data versions of what its checks read, where that is no upstream of the asset."""
    is_stored: bool = True


@dataclass(frozen=True, kw_only=True)
class AssetState:
    """An asset as declared, and as last made (None: never)."""

    key: str
    code_version: str | None
    upstream: tuple[str, ...]
    latest: Materialized | None
    is_partitioned: bool = False
    check_inputs: tuple[str, ...] = ()
    """Assets that its checks read without being its upstream."""
    source_version: str | None = None
    """The observed data version, for a source that is not materialized."""


@dataclass(frozen=True, kw_only=True)
class PlannedAsset:
    """An asset a run would make, and why."""

    key: str
    reason: str


def plan_run(states: Sequence[AssetState]) -> list[PlannedAsset]:
    """Return the assets whose materialization would differ, in the order given (upstream first).

    What a check reads counts like an upstream: the check runs with its asset, and stops what is
    downstream only when that is in the same run. A check may read what comes later in the order,
    so the plan is repeated until nothing is added.
    """
    planned: dict[str, str] = {}
    while True:
        found = _plan_once(states, planned)
        if found.keys() == planned.keys():
            return [PlannedAsset(key=key, reason=reason) for key, reason in found.items()]
        planned = found


def _plan_once(states: Sequence[AssetState], before: Collection[str]) -> dict[str, str]:
    versions: dict[str, str | None] = {}
    made = {state.key: state.latest.data_version for state in states if state.latest}
    planned: dict[str, str] = {}
    for state in states:
        if state.source_version is not None:
            versions[state.key] = state.source_version
            continue
        reason = _find_reason(state, planned, versions) or _find_unchecked(state, before, made)
        if reason:
            planned[state.key] = reason
        versions[state.key] = _current_version(state)
    return planned


def find_blockers(states: Sequence[AssetState], chosen: Collection[str]) -> dict[str, str]:
    """Return what `chosen` needs, does not include and cannot be built on; each with the reason.

    A table that was never made (or is gone) needs its own upstream made first, so that is followed.
    A check that has not passed blocks everything downstream of it, however far.
    """
    by_key = {state.key: state for state in states}
    blockers: dict[str, str] = {}
    waiting = [(need, True) for key in chosen for need in _list_needs(by_key[key])]
    seen: set[tuple[str, bool]] = set()
    while waiting:
        key, is_read = waiting.pop()
        state = by_key[key]
        if (key, is_read) in seen or key in chosen or state.source_version is not None:
            continue
        seen.add((key, is_read))
        is_missing = state.latest is None or not state.latest.is_stored
        if is_missing and is_read:
            blockers[key] = "was never made" if state.latest is None else "is damaged or gone"
        elif state.latest is not None and state.latest.unpassed_checks:
            blockers[key] = f"has not passed its check {state.latest.unpassed_checks[0]}"
        waiting += [(name, is_missing and is_read) for name in state.upstream]
    return {state.key: blockers[state.key] for state in states if state.key in blockers}


def _list_needs(state: AssetState) -> tuple[str, ...]:
    return (*state.upstream, *state.check_inputs)


def _current_version(state: AssetState) -> str | None:
    """Return the version a downstream asset would record (Dagster hashes a partition's again)."""
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
    if not state.latest.is_stored:
        return "what it made is damaged or gone from disk"
    if state.latest.unpassed_checks:
        return f"its check {state.latest.unpassed_checks[0]} has not passed"
    for upstream in state.upstream:
        if upstream in planned:
            return f"{upstream} will change"
        if state.latest.input_versions.get(upstream) != versions.get(upstream):
            return f"{upstream} changed"
    return ""


def _find_unchecked(
    state: AssetState, planned: Collection[str], made: Mapping[str, str | None]
) -> str:
    if state.latest is None:
        return ""
    for name in state.check_inputs:
        if name in planned:
            return f"its check reads {name}, which will change"
        if state.latest.checked_against.get(name) != made.get(name):
            return f"its check reads {name}, which changed"
    return ""


def read_states(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    *,
    partition: str,
    sources: Mapping[dg.AssetKey, str],
    is_stored: IsStored,
) -> list[AssetState]:
    """Read declared and recorded facts of every asset, upstream first.

    Args:
        definitions: the code location.
        instance: where the event log is.
        partition: the recipe, for partitioned assets.
        sources: current data versions of the observable sources.
        is_stored: whether what the log remembers is still there.
    """
    graph = definitions.resolve_asset_graph()
    checks: dict[dg.AssetKey, list[dg.AssetCheckSpec]] = {}
    for check in graph.asset_check_keys:
        checks.setdefault(check.asset_key, []).append(graph.get_check_spec(check))
    order = graph.toposorted_asset_keys
    reader = _LogReader(instance, {key: graph.get(key).is_partitioned for key in order}, partition)
    states = []
    for key in order:
        node, specs = graph.get(key), checks.get(key, [])
        inputs = {dep.asset_key for spec in specs for dep in spec.additional_deps}
        name, of = key.to_user_string(), partition if node.is_partitioned else None
        states.append(
            AssetState(
                key=name,
                code_version=node.code_version,
                upstream=_name(node.parent_keys),
                latest=reader.read(key, specs, is_stored=is_stored(name, of)),
                is_partitioned=node.is_partitioned,
                check_inputs=_name(inputs - node.parent_keys),
                source_version=sources.get(key),
            )
        )
    return states


def _name(keys: Iterable[dg.AssetKey]) -> tuple[str, ...]:
    return tuple(sorted(key.to_user_string() for key in keys))


@dataclass(frozen=True)
class _LogReader:
    """Reads latest materializations and what became of their checks."""

    instance: dg.DagsterInstance
    is_partitioned: Mapping[dg.AssetKey, bool]
    partition: str

    def read(
        self, key: dg.AssetKey, checks: Sequence[dg.AssetCheckSpec], *, is_stored: bool
    ) -> Materialized | None:
        """Return the latest materialization of an asset, or None."""
        found = self._find(key)
        materialization = found.asset_materialization if found else None
        if found is None or materialization is None:
            return None
        passed = [(spec, self._find_passed_at(spec, found)) for spec in checks]
        tags = materialization.tags or {}
        metadata = {n: str(entry.value) for n, entry in materialization.metadata.items()}
        return Materialized(
            code_version=tags.get(CODE_VERSION_TAG),
            data_version=tags.get(DATA_VERSION_TAG),
            input_versions={
                **_strip_prefix(INPUT_VERSION_PREFIX, tags),
                **_strip_prefix(STATED_VERSION_PREFIX, metadata),
            },
            unpassed_checks=tuple(
                sorted(spec.name for spec, at in passed if spec.blocking and at is None)
            ),
            checked_against={
                dep.asset_key.to_user_string(): _read_version(self._find(dep.asset_key, before=at))
                for spec, at in passed
                if at is not None
                for dep in spec.additional_deps
            },
            is_stored=is_stored,
        )

    def _find(self, key: dg.AssetKey, *, before: float | None = None) -> dg.EventLogRecord | None:
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(
                asset_key=key,
                asset_partitions=[self.partition] if self.is_partitioned[key] else None,
                before_timestamp=before,
            ),
            limit=1,
        ).records
        return records[0] if records else None

    def _find_passed_at(self, spec: dg.AssetCheckSpec, made: dg.EventLogRecord) -> float | None:
        """Return when a check last let this very materialization through; None if it did not.

        Matched by the materialization, which also settles the partition. A check record's own time
        is that of its planning, before everything it checks. In a run of a partition Dagster 1.13
        leaves the target of unpartitioned assets empty: there the evaluation's time decides.
        """
        history = self.instance.event_log_storage.get_asset_check_execution_history(
            spec.key, limit=CHECK_HISTORY
        )
        for record in history:
            event = record.event.dagster_event if record.event else None
            evaluation = event.event_specific_data if event else None
            if record.event is None or not isinstance(evaluation, dg.AssetCheckEvaluation):
                continue
            target = evaluation.target_materialization_data
            if target is not None:
                is_meant = target.storage_id == made.storage_id
            else:
                is_late = record.event.timestamp >= made.timestamp
                is_meant = is_late and not self.is_partitioned[spec.asset_key]
            if is_meant:
                is_warning = evaluation.severity == dg.AssetCheckSeverity.WARN
                return record.event.timestamp if evaluation.passed or is_warning else None
        return None


def _read_version(record: dg.EventLogRecord | None) -> str | None:
    materialization = record.asset_materialization if record else None
    return (materialization.tags or {}).get(DATA_VERSION_TAG) if materialization else None
