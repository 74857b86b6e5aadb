"""Answering with what a study has chosen: in process, or behind MLflow."""
