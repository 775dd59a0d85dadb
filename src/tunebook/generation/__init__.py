"""Answers: from a model in this process or from any OpenAI-compatible server, kept on disk as they come."""
