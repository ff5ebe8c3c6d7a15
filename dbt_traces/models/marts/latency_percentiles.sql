-- By hour, model role and warmth: a cold start hides in a p99 over both.
select
  date_trunc('hour', asked_at) as asked_hour,
  env,
  role,
  is_cold,
  count(*) as attempt_count,
  percentile_cont(0.5) within group (order by latency_ms) as p50_ms,
  percentile_cont(0.95) within group (order by latency_ms) as p95_ms,
  percentile_cont(0.99) within group (order by latency_ms) as p99_ms
from {{ ref('int_traces__attempts') }}
where latency_ms is not null
group by date_trunc('hour', asked_at), env, role, is_cold
