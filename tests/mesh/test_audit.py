"""After all stories: ledger, provider, seats and bookings agree. Runs last (see conftest)."""
