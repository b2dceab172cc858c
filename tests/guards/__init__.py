"""Guards: every mechanism behind a promise is switched off once, and a named test has to go red."""
