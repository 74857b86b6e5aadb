"""What a study holds, gathered for the comparison and the report: new personas, imported scores, figures and tables."""
