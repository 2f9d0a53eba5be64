#!/bin/sh
# Makes the secrets of compose.yaml, once, readable by you alone: secrets.env for all nodes (Ray, the S3 server), store.env for
# the head (PostgreSQL).
set -eu
cd "$(dirname "$0")"
[ ! -e secrets.env ] || { echo "secrets.env is there already; remove it, and the volumes, to begin anew" >&2; exit 1; }
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
umask 077
password=$(secret)
cat > store.env <<END
POSTGRES_PASSWORD=$password
ORCH_STORE=postgresql+psycopg://orch:$password@postgres/orch
END
cat > secrets.env.new <<END
RAY_AUTH_TOKEN=$(secret)
AWS_ACCESS_KEY_ID=orch
AWS_SECRET_ACCESS_KEY=$(secret)
END
mv secrets.env.new secrets.env
