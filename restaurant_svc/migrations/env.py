"""How alembic reaches the database; called by the kit, or by the alembic command."""

from dinemesh.kit.migrate import run_env
from restaurant_svc.persistence import metadata

run_env(metadata)
