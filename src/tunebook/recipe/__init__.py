"""The recipe: one YAML file that says everything about a run. Reading it, and the errors it gives."""
