"""The schema of the deposit service's database, step by step."""
