-- Questions the student could not handle, for a person to decide about: nothing trains from here.
with hard as (
  select *
  from {{ ref('stg_traces__records') }}
  where env = 'prod' and is_trainable and is_answered
    and not is_injection and not is_escalation_requested
    and (selection_mode = 'fallback' or is_refused or coalesce(route_reason, 'default') <> 'default')
)

select
  question_hash,
  max(trace_id) as trace_id,
  max(question) as question,
  max(topic) as topic,
  count(*) as ask_count,
  count(distinct key_id) as key_count,
  cast(sum(case when selection_mode = 'fallback' then 1 else 0 end) as bigint) as fallback_count,
  cast(sum(case when is_refused then 1 else 0 end) as bigint) as refusal_count,
  min(max_score) as lowest_score,
  max(asked_at) as last_asked_at
from hard
group by question_hash
