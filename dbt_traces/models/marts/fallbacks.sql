-- Asks whose first model did not give the answer, and why: its error, what was wrong with its
-- answer, or doubt: a valid answer is only passed over by a router that is not sure enough of it.
with firsts as (
  select trace_id, role, model, error, verdict, cost_usd
  from {{ ref('int_traces__attempts') }}
  where attempt_number = 1
)

select
  records.trace_id,
  records.asked_at,
  records.env,
  records.topic,
  firsts.model as first_model,
  case
    when firsts.error is not null then 'error'
    when firsts.verdict = 'valid' then 'low_confidence'
    else coalesce(firsts.verdict, 'unknown')
  end as reason,
  records.served_by,
  records.is_refused,
  records.is_answered,
  firsts.cost_usd as wasted_cost_usd
from {{ ref('stg_traces__records') }} as records
inner join firsts on records.trace_id = firsts.trace_id
where {{ count_entries('records.attempts') }} >= 2
