"""Reservations, their terms and modifications, request ids, and the seat_inventory of seats per slot."""
