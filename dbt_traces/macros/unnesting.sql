{#- One row per attempt. Lists of structs are spelt differently by every engine: this is the place. -#}
{% macro unnest_attempts(relation) %}
  {{ return(adapter.dispatch('unnest_attempts')(relation)) }}
{% endmacro %}

{% macro duckdb__unnest_attempts(relation) %}
  select trace_id, attempt_number, attempts[attempt_number] as attempt
  from (
    select trace_id, attempts, unnest(range(1, len(attempts) + 1)) as attempt_number
    from {{ relation }}
  )
{% endmacro %}

{#- The page of the best retrieved chunk: what the question is about. -#}
{% macro topic_of(retrieved) %}
  {{ return(adapter.dispatch('topic_of')(retrieved)) }}
{% endmacro %}

{% macro duckdb__topic_of(retrieved) %}
  coalesce(regexp_extract({{ retrieved }}[1].chunk_id, '^docs:(.*)/[0-9]+$', 1), '')
{% endmacro %}
