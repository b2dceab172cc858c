"""Examples that are run by the tests: what a client of Dinemesh looks like."""
