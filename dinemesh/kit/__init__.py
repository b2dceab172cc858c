"""What every service stands on: server, channel, errors, settings, store, outbox, inbox, bus, telemetry.

Nothing here knows what the mesh is for: no business word belongs in this package.
"""
