"""The checks of an audit, one kind in a file. Each looks at a snapshot and says what is wrong in it."""
