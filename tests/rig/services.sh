# The real parts that tests run against: a Docker Engine with Compose, and PostgreSQL, of our own; and pkilint.
#
# Sourced by bash after packaging/setup.sh. Everything is started on loopback or on private
# networks under one run's folder, known by its process id, and stopped by services_down; what is
# fetched or made once is kept in the cache beside it. Nothing of the machine's own engine or
# database is used or touched.

# services_up ROOT: the engine, the database and the linter, and the environment by which tests find them:
#   HYPERFACTORY_TEST_DOCKER      the engine's socket (a path)
#   HYPERFACTORY_TEST_DOCKER_CLI  the docker program that fits it
#   HYPERFACTORY_TEST_IMAGE       an image that the engine has (busybox)
#   HYPERFACTORY_TEST_POSTGRES    the database's URL, as a superuser
#   HYPERFACTORY_TEST_PKILINT     a Python that has pkilint
#   DOCKER_CONFIG                 a folder with the Compose plugin
services_up() {
    rig_open "$1"
    pkilint_ready
    engine_up "$1"
    postgres_up
}

services_down() {
    [ -n "${rig_run:-}" ] || return 0
    postgres_down
    engine_down
    rig_close
}

# need_services: the packages behind them, the judges of certificates that run by themselves, and an MQTT broker that tests
# start on their own.
need_services() {
    need_packages "docker.io" "docker-cli|docker.io" containerd iptables busybox-static iproute2 procps \
        "postgresql-15|postgresql" python3-venv openssl gnutls-bin mosquitto mosquitto-clients haproxy
    need_root "to run a Docker Engine and network namespaces for the tests"
}

# --- The run's folder -----------------------------------------------------------------------------

rig_open() {
    local base="${CARGO_TARGET_DIR:-$1/target}/rig"
    mkdir -p "$base/cache"
    base=$(cd "$base" && pwd)
    rig_cache=$base/cache
    local stale
    # Without an owner it is another run's that begins or ends just now.
    for stale in "$base"/run.*; do
        [ -s "$stale/owner" ] && ! _alive "$(cat "$stale/owner" 2>/dev/null)" && _rig_reap "$stale"
    done
    rig_run=$(mktemp -d "$base/run.XXXXXX")
    chmod 755 "$rig_run"
    echo $$ >"$rig_run/owner"
    # Socket paths are limited to 107 bytes, and a target folder can be anywhere.
    rig_sockets=$(mktemp -d /tmp/hyperfactory-rig.XXXXXX)
    chmod 755 "$rig_sockets"
    echo "$rig_sockets" >"$rig_run/sockets"
}

# The owner goes first: nobody takes for left behind what is being removed.
rig_close() {
    as_root rm -f "$rig_run/owner"
    case "$rig_sockets" in /tmp/hyperfactory-rig.*) as_root rm -rf --one-file-system "$rig_sockets" ;; esac
    as_root rm -rf --one-file-system "$rig_run"
    rig_run=''
}

# What a run left that was killed before it could stop its services.
_rig_reap() {
    rig_run=$1 rig_sockets=$(cat "$1/sockets" 2>/dev/null) || rig_sockets=''
    say "  stopping what an earlier, interrupted run left in $1"
    postgres_down
    engine_down
    rig_close
}

_alive() { [ -n "$1" ] && [ -d "/proc/$1" ]; }

# _stop PIDFILE SIGNAL SECONDS OURS: ends one process of ours and waits for it. A process id can be
# somebody else's by now, so its command line must name OURS.
_stop() {
    local pid waited=0
    pid=$(as_root cat "$1" 2>/dev/null | head -n 1) || return 0
    _alive "$pid" && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "$4" || return 0
    as_root kill -s "$2" "$pid" 2>/dev/null || return 0
    while _alive "$pid" && [ "$waited" -lt $(($3 * 10)) ]; do
        sleep 0.1
        waited=$((waited + 1))
    done
    if _alive "$pid"; then as_root kill -s KILL "$pid" 2>/dev/null || true; fi
}

# _wait SECONDS PIDFILE LOG WHAT COMMAND…: until the command succeeds; fails early if the process ended.
_wait() {
    local tries=$(($1 * 10)) pidfile=$2 log=$3 what=$4
    shift 4
    until "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        if [ "$tries" -le 0 ] || { [ -s "$pidfile" ] && ! _alive "$(as_root cat "$pidfile" | head -n 1)"; }; then
            as_root tail -n 20 "$log" | sed 's/^/    /' >&2 || true
            return 1
        fi
        sleep 0.1
    done
}

# --- pkilint ---------------------------------------------------------------------------------------

# In a Python environment of its own, which is made once, and anew for another version.
pkilint_ready() {
    local version=0.13.3 home=$rig_cache/pkilint
    export HYPERFACTORY_TEST_PKILINT=$home/bin/python
    # Python itself may have been replaced since, and what was installed for the old one with it.
    if [ "$(cat "$home/version" 2>/dev/null)" = "$version" ] && "$home/bin/python" -c 'import pkilint' 2>/dev/null; then return; fi
    say "  pkilint $version (once; kept in $home) …"
    rm -rf "$home"
    if ! { python3 -m venv "$home" && "$home/bin/pip" install --quiet --disable-pip-version-check "pkilint==$version"; } \
        >"$rig_cache/pkilint.log" 2>&1; then
        fail "pkilint, which the tests judge certificates with, could not be installed: $(tail -n 1 "$rig_cache/pkilint.log")" \
            "Look at the network, or at pip's settings for a package index; then run this again." \
            "The whole log: $rig_cache/pkilint.log"
    fi
    echo "$version" >"$home/version"
}

# --- Docker Engine --------------------------------------------------------------------------------

engine_up() {
    local cli=/usr/bin/docker state=$rig_run/engine
    mkdir -p "$state"
    say "  Docker Engine …"
    # A containerd of our own: one that the machine already runs would be shared with its engine.
    cat >"$state/containerd.toml" <<TOML
version = 2
root = "$state/containerd"
state = "$rig_sockets/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "$rig_sockets/containerd.sock"
TOML
    _background "$state/containerd.pid" "$state/containerd.log" \
        containerd --config "$state/containerd.toml" --log-level warn
    _wait 30 "$state/containerd.pid" "$state/containerd.log" containerd as_root test -S "$rig_sockets/containerd.sock" ||
        fail "containerd for the tests did not start; the end of its log is above." "The whole log: $state/containerd.log"
    # No iptables rules: another engine's rules on this machine stay as they are. Ports are published
    # by the proxy program, and networks come from a range of our own.
    echo '{}' >"$state/daemon.json"
    _background "$state/dockerd.pid" "$state/dockerd.log" \
        dockerd --config-file "$state/daemon.json" --host "unix://$rig_sockets/docker.sock" --group "$(id -g)" \
        --containerd "$rig_sockets/containerd.sock" \
        --data-root "$state/docker" --exec-root "$rig_sockets/docker" --pidfile "$state/dockerd.own.pid" \
        --bridge none --iptables=false --ip6tables=false --ip-masq=false \
        --default-address-pool "base=10.$((200 + $$ % 50)).0.0/16,size=26" \
        --shutdown-timeout 2 --log-level warn
    export HYPERFACTORY_TEST_DOCKER=$rig_sockets/docker.sock
    export HYPERFACTORY_TEST_DOCKER_CLI=$cli
    _wait 60 "$state/dockerd.pid" "$state/dockerd.log" dockerd "$cli" --host "unix://$HYPERFACTORY_TEST_DOCKER" version ||
        fail "The Docker Engine for the tests did not start; the end of its log is above." \
            "The whole log: $state/dockerd.log" \
            "Inside a container it needs --privileged."
    _compose_plugin
    mkdir -p "$rig_run/docker-config/cli-plugins"
    cp "$rig_cache/docker-compose" "$rig_run/docker-config/cli-plugins/docker-compose"
    export DOCKER_CONFIG=$rig_run/docker-config
    _base_image "$1"
}

engine_down() {
    local state=$rig_run/engine sock=$rig_sockets/docker.sock left
    [ -d "$state" ] || return 0
    if as_root test -S "$sock"; then
        # At once, rather than each container's ten seconds of grace at the engine's end.
        left=$(timeout 20 /usr/bin/docker --host "unix://$sock" ps -aq 2>/dev/null) || left=''
        # shellcheck disable=SC2086
        [ -z "$left" ] || timeout 60 /usr/bin/docker --host "unix://$sock" rm -f $left >/dev/null 2>&1 || true
        left=$(timeout 20 /usr/bin/docker --host "unix://$sock" network ls -q --filter type=custom 2>/dev/null) || left=''
        # shellcheck disable=SC2086
        [ -z "$left" ] || timeout 60 /usr/bin/docker --host "unix://$sock" network rm $left >/dev/null 2>&1 || true
    fi
    _stop "$state/dockerd.pid" TERM 20 "$state"
    _stop "$state/containerd.pid" TERM 10 "$state"
    local mount
    # What was killed before it had sockets has none; an empty name would stand for every mount of the machine.
    awk -v a="$state/" -v b="${rig_sockets:-$state}/" 'index($5, a) == 1 || index($5, b) == 1 { print $5 }' /proc/self/mountinfo |
        while read -r mount; do as_root umount -l "$mount" 2>/dev/null || true; done
}

# _background PIDFILE LOG COMMAND…: starts it as root in a session of its own, so that Ctrl-C reaches
# only the script, which then stops things in order.
_background() {
    local pidfile=$1 log=$2
    shift 2
    as_root env PATH="$PATH:/usr/sbin:/sbin" setsid --fork \
        sh -c 'echo $$ >"$1"; log=$2; shift 2; exec "$@" >"$log" 2>&1 </dev/null' sh "$pidfile" "$log" "$@"
}

# The image of the demo and the test stack, made without a registry.
_base_image() {
    DOCKER_HOST=unix://$HYPERFACTORY_TEST_DOCKER PATH="$(dirname "$HYPERFACTORY_TEST_DOCKER_CLI"):$PATH" "$1/compose/image" ||
        fail "The engine did not take the test image." "Its log: $rig_run/engine/dockerd.log"
    export HYPERFACTORY_TEST_IMAGE=hyperfactory/busybox:1
}

# Compose v2 as the docker program's plugin. Where the release has it as a package, that is used;
# Debian 12 has only the old one, so the plugin is taken out of the next release's package without
# installing it, from the mirror that this machine is already set up for.
_compose_plugin() {
    local found
    for found in /usr/libexec/docker/cli-plugins/docker-compose /usr/lib/docker/cli-plugins/docker-compose; do
        if [ -x "$found" ]; then
            cp "$found" "$rig_cache/docker-compose"
            return
        fi
    done
    [ ! -x "$rig_cache/docker-compose" ] || return 0
    say "  Compose v2 plugin (once; kept in $rig_cache) …"
    local apt=$rig_cache/apt mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    rm -rf "$apt"
    mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/unpacked"
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
        awk '$2 == "Debian" && $3 !~ /security|updates|backports/ && $4 == "main" { print $1; exit }')
    [ -n "$mirror" ] ||
        fail "There is no Compose v2 here, and no Debian mirror in the package sources to take it from." \
            "Install a package that has it (docker-compose-v2 on Ubuntu, docker-compose on Debian 13), then run this again."
    [ ! -r "$keyring" ] || keyring="[signed-by=$keyring] "
    echo "deb ${keyring}$mirror trixie main" >"$apt/sources.list"
    local options=(-q -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache::Archives=$apt/archives" -o Acquire::Languages=none
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o Acquire::Retries=3 -o Debug::NoLocking=1
        -o APT::Update::Post-Invoke::=true -o APT::Sandbox::User=root)
    if ! (cd "$apt" && apt-get "${options[@]}" update && apt-get "${options[@]}" download docker-compose) >"$apt/log" 2>&1 ||
        ! dpkg-deb -x "$apt"/docker-compose_*.deb "$apt/unpacked"; then
        fail "The Compose v2 plugin could not be fetched from Debian's next release." \
            "apt-get said: $(_complaint "$apt/log")" \
            "$(_advice "$apt/log" "The whole log: $apt/log")"
    fi
    install -m 755 "$apt/unpacked/usr/libexec/docker/cli-plugins/docker-compose" "$rig_cache/docker-compose.new"
    mv "$rig_cache/docker-compose.new" "$rig_cache/docker-compose"
    rm -rf "$apt"
}

# --- PostgreSQL -----------------------------------------------------------------------------------

# A new cluster for every run, durable as in production, open to this machine's loopback only.
postgres_up() {
    local bin tries port
    bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
    [ -x "$bin/initdb" ] || fail "PostgreSQL's server programs are missing under /usr/lib/postgresql." "apt-get install postgresql"
    local home=$rig_run/postgres
    mkdir -p "$home"
    if [ "$(id -u)" -eq 0 ]; then
        # The server refuses to run as root, and its user may not reach our folder.
        runuser -u postgres -- test -x "$rig_run" || home=$(mktemp -d /var/tmp/hyperfactory-postgres.XXXXXX)
        chown postgres "$home"
        echo "$home" >"$rig_run/postgres.home"
        _postgres() { runuser -u postgres -- "$@"; }
    else
        echo "$home" >"$rig_run/postgres.home"
        _postgres() { "$@"; }
    fi
    say "  PostgreSQL …"
    (cd / && _postgres "$bin/initdb" --pgdata "$home/data" --username postgres --auth trust --encoding UTF8 --locale C.UTF-8) \
        >"$rig_run/initdb.log" 2>&1 ||
        fail "PostgreSQL's initdb failed: $(tail -n 1 "$rig_run/initdb.log")" "The whole log: $rig_run/initdb.log"
    for tries in 1 2 3 4 5; do
        port=$((20000 + RANDOM % 12000))
        # Below the ports that the kernel hands out by itself; another listener makes the start fail.
        if (cd / && _postgres "$bin/pg_ctl" --pgdata "$home/data" --log "$home/log" --wait --silent --options \
            "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories='' -c max_connections=300 -c fsync=on -c shared_buffers=128MB" \
            start) >/dev/null 2>&1; then
            export HYPERFACTORY_TEST_POSTGRES=postgres://postgres@127.0.0.1:$port/postgres
            return
        fi
    done
    as_root tail -n 20 "$home/log" >&2 || true
    fail "PostgreSQL did not start (tried $tries ports); the end of its log is above." "The whole log: $home/log"
}

postgres_down() {
    local home
    home=$(cat "$rig_run/postgres.home" 2>/dev/null) || return 0
    # INT is PostgreSQL's fast shutdown: sessions are cut, the data stays whole.
    _stop "$home/data/postmaster.pid" INT 20 "$home/data"
    case "$home" in /var/tmp/hyperfactory-postgres.*) as_root rm -rf --one-file-system "$home" ;; esac
}
