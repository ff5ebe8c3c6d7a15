-- What was paid, and what the teacher would have cost for the same answers.
select
  asked_date,
  env,
  count(*) as ask_count,
  sum(cost_usd) as cost_usd,
  sum(counterfactual_cost_usd) as counterfactual_cost_usd,
  sum(counterfactual_cost_usd) - sum(cost_usd) as saved_usd
from {{ ref('stg_traces__records') }}
where is_answered
group by asked_date, env
