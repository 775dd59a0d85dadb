"""The recipe: one YAML file that says everything about a run. Reading it, checking it, and the errors it gives."""
