"""Compares methods: statistics, tables and a figure, computed from the evaluation rows alone."""
