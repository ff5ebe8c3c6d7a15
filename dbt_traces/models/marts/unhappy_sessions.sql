-- Conversations that went on after a refusal or a problem. Derived from traces, never from feedback.
select key_id, conversation_id, env, started_at, ended_at, ask_count, refusal_count,
  problem_count, escalation_count
from {{ ref('int_traces__sessions') }}
where ask_count >= 2 and (refusal_count > 0 or problem_count > 0 or escalation_count > 0)
