select
  asked_hour,
  env,
  topic,
  coalesce(served_by, 'nobody') as served_by,
  count(*) as ask_count,
  cast(sum(case when is_refused then 1 else 0 end) as bigint) as refusal_count,
  sum(cost_usd) as cost_usd
from {{ ref('stg_traces__records') }}
group by asked_hour, env, topic, coalesce(served_by, 'nobody')
