"""From settings to work: the gate's ladder, the adapters that a study needs, and how they are grouped into runs."""
