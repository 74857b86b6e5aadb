"""Drives pages in a headless browser, for tests and for the documentation's screenshots."""
