{#- Lists and structs, in DuckDB's words. -#}

{#- One row per attempt, numbered from 1. -#}
{% macro unnest_attempts(relation) %}
  select trace_id, attempt_number, attempts[attempt_number] as attempt
  from (
    select trace_id, attempts, unnest(range(1, len(attempts) + 1)) as attempt_number
    from {{ relation }}
  )
{% endmacro %}

{#- How many entries a list has; null for no list. -#}
{% macro count_entries(entries) %}len({{ entries }}){% endmacro %}

{#- The page of the best retrieved chunk: what the question is about. -#}
{% macro topic_of(retrieved) %}
  coalesce(regexp_extract({{ retrieved }}[1].chunk_id, '^docs:(.*)/[0-9]+$', 1), '')
{% endmacro %}
