#!/bin/sh
# Creates a role and a database of its own for each service, with the passwords of the mounted secrets. PostgreSQL's image runs it once, as the
# superuser, when the data folder is empty.
set -eu
for name in clusterlora prefect mlflow; do
    psql --set ON_ERROR_STOP=1 --quiet --no-psqlrc --username "${POSTGRES_USER:-postgres}" --dbname postgres \
        --set name="$name" --set password="$(cat "${SECRETS:-/run/secrets}/${name}_database_password")" <<'SQL'
create role :"name" login password :'password' nosuperuser nocreatedb nocreaterole noreplication;
create database :"name" owner :"name";
revoke all on database :"name" from public;
SQL
done
psql --set ON_ERROR_STOP=1 --quiet --no-psqlrc --username "${POSTGRES_USER:-postgres}" --dbname postgres --command 'revoke all on database postgres from public'
