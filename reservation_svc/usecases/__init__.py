"""What the service does, one file per behaviour. `desk.py` holds what all of them need."""
