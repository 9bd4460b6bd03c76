# Sourced by the scripts beside it: how Compose is called here, and the demo stack's name.

project=hyperfactory-demo

# demo_compose ARGUMENT…: Compose on the demo stack; either the docker program's plugin or the older program.
demo_compose() {
    local folder
    folder=$(dirname "$0")
    if docker compose version >/dev/null 2>&1; then
        docker compose --project-name "$project" --file "$folder/compose.yaml" "$@"
    else
        docker-compose --project-name "$project" --file "$folder/compose.yaml" "$@"
    fi
}
