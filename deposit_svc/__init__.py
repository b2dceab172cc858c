"""Deposits: taken before a booking exists, given back or kept by its rules, never lost or taken twice."""
