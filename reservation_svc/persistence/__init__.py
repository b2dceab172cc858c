"""The tables of reservation and every statement on them. A move is one guarded update: expected state and
version."""
