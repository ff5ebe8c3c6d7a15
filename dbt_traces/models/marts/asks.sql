-- One row per question of a user, without texts.
select
  trace_id, asked_at, env, client_kind, key_id, conversation_id, release_id, topic, max_score, phase,
  route, route_reason, selection_mode, served_by, model, is_refused, is_answered, outcome,
  confidence, total_latency_ms, overhead_ms, cost_usd, counterfactual_cost_usd,
  is_escalation_requested, is_escalation_granted, is_trainable, is_injection
from {{ ref('stg_traces__records') }}
