"""The whole mesh on one machine: no containers, no root, nothing changed outside the project folder."""
