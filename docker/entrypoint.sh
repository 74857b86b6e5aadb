#!/bin/sh
# Turns secret files into the variables that programs read, then becomes the command. A variable X is read from the file X_FILE names;
# in CLUSTERLORA_DATABASE_URL, PREFECT_SERVER_DATABASE_CONNECTION_URL and MLFLOW_BACKEND_STORE_URI, @PASSWORD@ becomes the content of
# DATABASE_PASSWORD_FILE, so that no password stands in a compose file or in `docker inspect`.
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

# Nobody is let in from outside without a password.
case " $* " in
    *" prefect server start "*0.0.0.0*) asks=${PREFECT_SERVER_API_AUTH_STRING:-} ;;
    *" mlflow server "*0.0.0.0*) case "$*" in *app-name*basic-auth*) asks=yes ;; *) asks= ;; esac ;;
    *) asks=yes ;;
esac
if [ -z "$asks" ]; then
    echo "error: this server would listen on 0.0.0.0 and ask for no password; set PREFECT_SERVER_API_AUTH_STRING_FILE, or --app-name=basic-auth" >&2
    exit 1
fi

exec "$@"
