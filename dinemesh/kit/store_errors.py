"""How a store fails, in the ways that a caller must tell apart. Standard library only."""


class CommitInDoubt(Exception):
    """COMMIT itself failed: the change may or may not stand. Read again by key before deciding anything."""


class StoreUnavailable(Exception):
    """The database cannot be reached or was too busy for every attempt. Nothing was changed."""


class StoreInUse(RuntimeError):
    """Another process holds the SQLite file: on SQLite a service is one process."""
