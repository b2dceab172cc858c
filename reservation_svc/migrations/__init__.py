"""The schema of the restaurant service's database, step by step."""
