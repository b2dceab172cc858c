"""The checks of an audit, one kind in a file. Each looks at a picture and says what is wrong in it."""
