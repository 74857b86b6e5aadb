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

# Refuse to start a server that listens on all addresses without a password.
case " $* " in
    *" prefect server start "*0.0.0.0*) password_set=${PREFECT_SERVER_API_AUTH_STRING:-} ;;
    *" mlflow server "*0.0.0.0*) case "$*" in *app-name*basic-auth*) password_set=yes ;; *) password_set= ;; esac ;;
    *) password_set=yes ;;
esac
if [ -z "$password_set" ]; then
    echo "error: this server would listen on 0.0.0.0 without a password; set PREFECT_SERVER_API_AUTH_STRING_FILE, or --app-name=basic-auth" >&2
    exit 1
fi

exec "$@"
