{#- Marts are exported as files: the platform reads no database. -#}
{% macro export_mart(relation) %}
  copy (select * from {{ relation }}) to
  '{{ var("marts_folder") }}/{{ relation.identifier }}.parquet'
  (format parquet, compression zstd)
{% endmacro %}
