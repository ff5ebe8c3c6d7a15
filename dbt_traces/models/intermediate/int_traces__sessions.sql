-- One row per conversation of a key, since clients choose the ids: how long it went on, and how
-- often it got nothing.
select
  key_id,
  conversation_id,
  env,
  min(asked_at) as started_at,
  max(asked_at) as ended_at,
  count(*) as ask_count,
  cast(sum(case when is_refused then 1 else 0 end) as bigint) as refusal_count,
  cast(sum(case when is_answered then 0 else 1 end) as bigint) as problem_count,
  cast(sum(case when is_escalation_requested then 1 else 0 end) as bigint) as escalation_count
from {{ ref('stg_traces__records') }}
where conversation_id is not null
group by key_id, conversation_id, env
