"""Talk to the models of a run."""
