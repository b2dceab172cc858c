"""The operator's commands: audit, dead letters, redrive, replay. They know the mesh from outside only."""
