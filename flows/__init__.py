"""The order of things, and nothing else: every flow is a paragraph of tasks."""
