"""One page about a study, `ReportData` in, HTML out; and the picture of its clusters. Nothing here reads a store."""
