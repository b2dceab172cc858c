"""Every point at which a process may die, died at: see `cases.py` for how they are found, `run.py` for how
they are exercised."""
