#!/bin/sh
# Creates the secret files that compose.yaml mounts, with random content; existing files are kept. Usage: docker/secrets.sh [FOLDER]
set -eu
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 700 "$folder"
umask 077
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
for name in database_password clusterlora_database_password prefect_database_password mlflow_database_password \
    mlflow_password mlflow_secret_key serve_key; do
    [ -s "$folder/$name" ] || random >"$folder/$name"
done
[ -s "$folder/prefect_auth" ] || printf 'clusterlora:%s' "$(random)" >"$folder/prefect_auth"
# Compose mounts the files with their modes, and the images' user is neither root nor their owner; the folder is closed to others.
chmod 644 "$folder"/*
# Mounted, too: a checkout made under a strict umask is closed to the user of PostgreSQL's image.
chmod a+rx "$(dirname "$0")/postgres-roles.sh"
echo "secrets are in $folder"
