select asks.trace_id
from {{ ref('asks') }} as asks
inner join (
  select trace_id, sum(cost_usd) as cost_usd from {{ ref('attempts') }} group by trace_id
) as paid on asks.trace_id = paid.trace_id
where abs(asks.cost_usd - paid.cost_usd) > 0.000000001
