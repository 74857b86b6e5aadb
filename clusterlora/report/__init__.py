"""Renders a study's report (`ReportData` in, HTML out), its cluster map and the figure of a data set. Reads no store."""
