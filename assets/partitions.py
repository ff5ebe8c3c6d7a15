"""Partitions: one per training recipe.

Belongs here: partition definitions. Does not belong here: which recipes exist (files under
`config/recipes/`, registered by the CLI when it starts).
"""

import dagster as dg

RECIPES = dg.DynamicPartitionsDefinition(name="recipes")
