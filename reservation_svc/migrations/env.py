"""How alembic reaches the database; called by the kit, or by the alembic command."""

from dinemesh.kit.migrate import run_env
from reservation_svc.persistence.tables import metadata

run_env(metadata)
