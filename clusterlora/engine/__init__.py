"""The engine: trains many adapters on one frozen base in one pass, and answers with them; knows no study, store or flow."""
