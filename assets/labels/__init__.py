"""Labels: what the teacher answered through the production pipeline, judged, split and scored."""
