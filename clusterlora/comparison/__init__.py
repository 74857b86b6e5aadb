"""Which method answers people best: statistics, tables and the figure, all from the evaluation rows alone."""
