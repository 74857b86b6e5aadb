#!/bin/sh
# Writes the secret files that compose.yaml mounts, once: random, readable by their owner alone. `docker/secrets.sh [FOLDER]`
set -eu
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 700 "$folder"
umask 077
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
for name in database_password mlflow_password mlflow_secret_key; do
    [ -s "$folder/$name" ] || random >"$folder/$name"
done
[ -s "$folder/prefect_auth" ] || printf 'clusterlora:%s' "$(random)" >"$folder/prefect_auth"
# Compose mounts the files as they are, and the images' user is neither root nor the owner.
chmod 644 "$folder"/*
echo "secrets are in $folder"
