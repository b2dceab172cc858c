"""What the service does, one file per behaviour. `context.py` holds what all of them need."""
