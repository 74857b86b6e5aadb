"""Pages in a headless browser: driven by the tests, photographed for the documentation."""
