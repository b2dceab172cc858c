"""The payment provider that ships: a sandbox, a process of its own with its own records. No money moves."""
