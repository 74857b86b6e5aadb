"""One core call each, with what Prefect adds to it: retries, a name, progress and artifacts. No decision is made here."""
