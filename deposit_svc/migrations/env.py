"""How alembic reaches the database; called by the kit, or by the alembic command."""

from deposit_svc.persistence import metadata
from dinemesh.kit.migrate import run_env

run_env(metadata)
