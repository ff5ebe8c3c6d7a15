"""Admission: who a request comes from, and whether they may do what they ask for.

Belongs here: from headers to a principal, scopes, the 401, 403 and 429 that follow. Does not belong
here: keys on disk (`keys`, `ring`), capacity of the server (`app`).
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from serving.access.keys import SCOPES, ApiKey, Scope
from serving.access.quotas import Exhausted, Quotas
from serving.access.ring import KeyRing
from serving.pipeline.circumstances import AllowTeacher
from serving.pipeline.router import RouteReason
from serving.problems import ProblemError
from serving.settings import VARIABLES, AuthSetting

_BY_OPERATOR: frozenset[RouteReason] = frozenset({"phase", "explore", "canary"})


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who asks: a key, or anybody (`key` is None) on an open server."""

    key: ApiKey | None
    scopes: frozenset[Scope]

    @property
    def key_id(self) -> str | None:
        """The public part of the key."""
        return self.key.key_id if self.key else None

    def trace_env(self, server_env: str) -> str:
        """Return the environment a trace belongs to: a key of another one is not production."""
        return self.key.env if self.key and self.key.env != "prod" else server_env


class Admission:
    """Decides on requests of one server."""

    def __init__(
        self,
        mode: AuthSetting,
        ring: KeyRing,
        *,
        open_scopes: frozenset[Scope],
        teacher_calls_per_day: int | None = None,
    ) -> None:
        """Decide by the keys of `ring`; `open_scopes` are anybody's while the server is open.

        `teacher_calls_per_day` holds for all together.
        """
        self._teacher_calls_per_day = teacher_calls_per_day
        self._mode = mode
        self._ring = ring
        self._anybody = Principal(key=None, scopes=open_scopes)
        self._quotas = Quotas()

    @property
    def is_open(self) -> bool:
        """Whether requests need no key now."""
        return self._mode == "open" or (self._mode == "auto" and self._ring.is_empty)

    @property
    def is_stale(self) -> bool:
        """Whether the key file cannot be read: the last good keys are in force."""
        return self._ring.is_stale

    def identify(self, authorization: str | None) -> Principal:
        """Return who sends this `Authorization` header.

        A key that is sent is checked on an open server too: a typo never passes unnoticed.

        Raises:
            ProblemError: `unauthenticated`: no key, or one that opens nothing.
        """
        if not authorization:
            if self.is_open:
                return self._anybody
            raise _unauthenticated("no Authorization header")
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise _unauthenticated("another scheme than Bearer")
        key = self._ring.find(text.strip())
        if key is None:
            raise _unauthenticated("a key this server does not know")
        refusal = key.describe_refusal(datetime.now(UTC))
        if refusal:
            raise _unauthenticated(refusal)
        return Principal(key=key, scopes=frozenset(key.scopes))

    async def admit(self, principal: Principal, scope: Scope) -> None:
        """Count the request and check its scope.

        Raises:
            ProblemError: `not-allowed` without the scope, `over-quota` past the key's rate.
        """
        if scope not in principal.scopes:
            raise ProblemError(
                "not-allowed",
                expected=f"a key with the scope {scope}",
                found=f"scopes {', '.join(s for s in SCOPES if s in principal.scopes) or 'none'}",
                next_step="Ask the operator of this server for a key with that scope.",
            )
        if principal.key is None:
            return
        exhausted = await self._quotas.count_request(
            principal.key.key_id, principal.key.requests_per_minute
        )
        if exhausted:
            raise _over_quota(exhausted)

    async def count_teacher_call(self, principal: Principal) -> Exhausted | None:
        """Count one call of the teacher for a key; anybody on an open server has no quota."""
        key = principal.key
        if key is None:
            return None
        return await self._quotas.count_teacher_call(
            key.key_id, per_minute=key.teacher_calls_per_minute, per_day=key.teacher_calls_per_day
        )

    def allow_teacher(self, principal: Principal, *, is_granted: bool) -> AllowTeacher:
        """Return what counts the teacher's calls for one question of a principal.

        A key pays for what its questions cause. What the operator chose (the phase, exploration,
        the canary's control) and quality granted, which was counted then, is on the house.
        """

        async def allow(reason: RouteReason) -> int | None:
            is_paid = is_granted or reason in _BY_OPERATOR
            spent = None if is_paid else await self.count_teacher_call(principal)
            if spent is None and self._teacher_calls_per_day is not None:
                spent = await self._quotas.count_daily("teacher", self._teacher_calls_per_day)
            return None if spent is None else spent.retry_after_seconds

        return allow

    async def may_have_quality(self, principal: Principal) -> bool:
        """Return whether quality is granted to who asks for it without insisting."""
        if "ask:prefer_quality" not in principal.scopes:
            return False
        return await self.count_teacher_call(principal) is None

    async def grant_quality(self, principal: Principal, *, asked: str) -> None:
        """Grant the teacher to who insists on it, which counts as a call of the teacher.

        Args:
            principal: who asks.
            asked: the field that insists, for the message.

        Raises:
            ProblemError: `not-allowed` without the scope, `over-quota` past the teacher's quota.
        """
        if "ask:prefer_quality" not in principal.scopes:
            raise ProblemError(
                "not-allowed",
                expected=f"{asked} with a key of the scope ask:prefer_quality",
                found=f"{asked} without it",
                next_step="Leave the field out, or ask for a key with that scope; "
                f"an open server allows it with {VARIABLES['allow_prefer_quality']}=true.",
            )
        exhausted = await self.count_teacher_call(principal)
        if exhausted:
            raise _over_quota(exhausted)


def _unauthenticated(found: str) -> ProblemError:
    return ProblemError(
        "unauthenticated",
        expected="Authorization: Bearer us_<id>_<secret> with a valid key",
        found=found,
        next_step="Send a key; operators make one with `understudy keys create`.",
        headers={"WWW-Authenticate": 'Bearer realm="understudy"'},
    )


def _over_quota(exhausted: Exhausted) -> ProblemError:
    return ProblemError(
        "over-quota",
        expected=f"at most {exhausted.limit} for this key",
        found="one more",
        next_step="Wait as Retry-After says, or ask the operator for a larger quota.",
        headers={"Retry-After": str(exhausted.retry_after_seconds)},
    )
