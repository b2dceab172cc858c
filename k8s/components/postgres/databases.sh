#!/usr/bin/env bash
# A database and a user for each service, with the password from <SERVICE>_PASSWORD. The image runs this once, when its
# volume is empty.
set -euo pipefail
for service in reservation deposit restaurant history; do
    password="${service^^}_PASSWORD"
    [ -n "${!password:-}" ] || { echo "databases.sh: $password is not set" >&2; exit 1; }
    psql --no-psqlrc --quiet -v ON_ERROR_STOP=1 -v service="$service" -v password="${!password}" \
        --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
CREATE ROLE :"service" LOGIN PASSWORD :'password';
CREATE DATABASE :"service" OWNER :"service";
-- A service sees its own database and no other.
REVOKE ALL ON DATABASE :"service" FROM PUBLIC;
SQL
done
