#!/bin/sh
# Exports secrets as the environment variables that the programs read, then executes the command. X is set to the content of the file named
# by X_FILE; in CLUSTERLORA_DATABASE_URL, PREFECT_SERVER_DATABASE_CONNECTION_URL and MLFLOW_BACKEND_STORE_URI, @PASSWORD@ is replaced by the
# content of DATABASE_PASSWORD_FILE. No password appears in a compose file or in `docker inspect`.
set -eu

read_secret() {
    if [ ! -r "$1" ]; then
        echo "error: secret file $1 cannot be read; create it: docker/secrets.sh" >&2
        exit 1
    fi
    cat "$1"
}

for name in PREFECT_SERVER_API_AUTH_STRING PREFECT_API_AUTH_STRING MLFLOW_TRACKING_PASSWORD MLFLOW_AUTH_ADMIN_PASSWORD \
    MLFLOW_FLASK_SERVER_SECRET_KEY; do
    eval "file=\${${name}_FILE:-}"
    if [ -n "$file" ]; then
        value=$(read_secret "$file")
        export "$name=$value"
    fi
done

if [ -n "${DATABASE_PASSWORD_FILE:-}" ]; then
    password=$(read_secret "$DATABASE_PASSWORD_FILE")
    for name in CLUSTERLORA_DATABASE_URL PREFECT_SERVER_DATABASE_CONNECTION_URL MLFLOW_BACKEND_STORE_URI; do
        eval "url=\${$name:-}"
        case $url in
            *@PASSWORD@*) export "$name=${url%%@PASSWORD@*}$password${url#*@PASSWORD@}" ;;
        esac
    done
fi

# No server starts without a password, whatever address it is to listen on and however it is started: the address may stand in the command,
# in an environment variable or in a file.
refuse() {
    echo "error: $1 would listen without a password; $2" >&2
    exit 1
}
case "$*" in
    *prefect*server*)
        case ${PREFECT_SERVER_API_AUTH_STRING:-} in
            ?*:????????*) ;;
            *) refuse "Prefect's server" "set PREFECT_SERVER_API_AUTH_STRING_FILE to a file with USER:PASSWORD, at least 8 characters of password" ;;
        esac
        ;;
esac
case "$*" in
    *mlflow*server* | *mlflow*[[:space:]]ui* | *mlflow*[[:space:]]serve* | *mlflow*gateway*)
        case "$*" in
            *--app-name=basic-auth* | *"--app-name basic-auth"*) ;;
            *) refuse "MLflow's server" "add --app-name=basic-auth" ;;
        esac
        admin_password=${MLFLOW_AUTH_ADMIN_PASSWORD:-}
        if [ "${#admin_password}" -lt 8 ]; then
            refuse "MLflow's server" "set MLFLOW_AUTH_ADMIN_PASSWORD_FILE to a file with at least 8 characters"
        fi
        ;;
esac

exec "$@"
