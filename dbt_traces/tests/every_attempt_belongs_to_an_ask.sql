select attempts.trace_id
from {{ ref('attempts') }} as attempts
left join {{ ref('asks') }} as asks on attempts.trace_id = asks.trace_id
where asks.trace_id is null
