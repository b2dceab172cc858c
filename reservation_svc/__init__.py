"""Reservations, their terms and modifications, request ids, and the allotment of seats per slot."""
