-- One row per call of a model, numbered from 1 within its ask.
with unnested as (
  {{ unnest_attempts(ref('stg_traces__records')) }}
)

select
  unnested.trace_id,
  unnested.attempt_number,
  records.asked_at,
  records.env,
  (unnested.attempt).role as role,
  (unnested.attempt).model as model,
  (unnested.attempt).latency_ms as latency_ms,
  (unnested.attempt).first_token_ms as first_token_ms,
  (unnested.attempt).queue_ms as queue_ms,
  coalesce((unnested.attempt).cold_start, false) as is_cold,
  cast((unnested.attempt).prompt_tokens as bigint) as prompt_tokens,
  cast((unnested.attempt).completion_tokens as bigint) as completion_tokens,
  coalesce((unnested.attempt).cost_usd, 0) as cost_usd,
  (unnested.attempt).error as error,
  (unnested.attempt).verdict as verdict
from unnested
inner join {{ ref('stg_traces__records') }} as records on unnested.trace_id = records.trace_id
