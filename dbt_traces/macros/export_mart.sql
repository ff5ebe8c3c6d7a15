{#- Marts are exported by what the adapter can do; another adapter keeps its own tables. -#}
{% macro export_mart(relation) %}
  {{ return(adapter.dispatch('export_mart')(relation)) }}
{% endmacro %}

{% macro default__export_mart(relation) %}select 1{% endmacro %}

{% macro duckdb__export_mart(relation) %}
  copy (select * from {{ relation }}) to
  '{{ var("marts_folder") }}/{{ relation.identifier }}.parquet'
  (format parquet, compression zstd)
{% endmacro %}
