select candidates.trace_id
from {{ ref('retrain_candidates') }} as candidates
inner join {{ ref('asks') }} as asks on candidates.trace_id = asks.trace_id
where asks.env <> 'prod' or asks.is_injection or asks.is_escalation_requested
