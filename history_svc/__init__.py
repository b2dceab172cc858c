"""The customer's timeline: everything that happened to their reservations, made of events only."""
