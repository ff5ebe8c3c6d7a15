-- Who asked for the expensive model, and whether it was granted.
select trace_id, asked_at, env, key_id, is_escalation_granted, served_by, cost_usd
from {{ ref('stg_traces__records') }}
where is_escalation_requested
