select * from {{ ref('int_traces__attempts') }}
