"""Run by alembic."""

from dinemesh.kit.migrate import run_env
from history_svc.persistence import metadata

run_env(metadata)
