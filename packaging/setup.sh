# Sets up the machine for the scripts at the root: what every one of them needs of the system.
#
# Sourced by bash, never run. Understands Debian and Ubuntu, as root or through sudo; goes to the
# network only for what is missing. Each script calls the need_* functions that it depends on.

# --- Telling the person ---------------------------------------------------------------------------

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    _bold=$'\e[1m' _red=$'\e[31m' _plain=$'\e[0m'
else
    _bold='' _red='' _plain=''
fi

# say TEXT…: one line of progress.
say() { printf '%s\n' "$*"; }

# headline TEXT…: a line that opens a new part of the work.
headline() { printf '\n%s== %s%s\n' "$_bold" "$*" "$_plain"; }

# fail WHAT [ADVICE…]: says what failed and what to do about it, then leaves with status 1.
fail() {
    printf '\n%s%s%s\n' "$_red" "$1" "$_plain" >&2
    shift
    local line
    for line in "$@"; do printf '  %s\n' "$line" >&2; done
    exit 1
}

# --- Being root, or asking sudo -------------------------------------------------------------------

# as_root COMMAND…: runs it as root; the caller has passed need_root.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# need_root WHY [ADVICE]: makes sure that as_root will work, asking for the password now rather than halfway.
need_root() {
    [ "$(id -u)" -eq 0 ] && return
    local advice=${2:-Run it again as root.}
    command -v sudo >/dev/null || fail "This needs root ($1), and there is no sudo here." "$advice"
    sudo -n true 2>/dev/null && return
    [ -t 0 ] ||
        fail "This needs root ($1), and sudo asks for a password that nobody is here to type." \
            "Run it from a terminal. Or: $advice"
    say "Root is needed ($1); sudo may ask for your password."
    sudo -v || fail "sudo was refused." "$advice"
}

# --- Packages -------------------------------------------------------------------------------------

package_installed() {
    case "$(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null)" in ii*) ;; *) return 1 ;; esac
}

# have_packages NAME…: whether all of them are installed.
have_packages() {
    local name
    for name in "$@"; do package_installed "$name" || return 1; done
}

# need_packages NAME…: installs those that are missing. A NAME may be "a|b": the first that is
# installed, or that this release has, counts. Services that come with a package are not started.
need_packages() {
    command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
        fail "This machine has no apt-get; the set-up knows Debian and Ubuntu only." \
            "Install the equivalents of these yourself: $*"
    local wanted missing=() choices choice
    for wanted in "$@"; do
        IFS='|' read -ra choices <<<"$wanted"
        for choice in "${choices[@]}"; do
            package_installed "$choice" && continue 2
        done
        missing+=("$wanted")
    done
    [ ${#missing[@]} -eq 0 ] && return

    local named
    named=$(printf ', %s' "${missing[@]//|/ or }")
    say "Missing packages: ${named#, }"
    # The choices among packages are apt's to know; the first is as good as any in advice.
    need_root "to install packages" "As root: apt-get install ${missing[*]%%|*}; then run this again."
    local log
    log=$(mktemp)
    if [ -z "${_lists_fresh:-}" ]; then
        say "  refreshing the package lists …"
        # A third-party source that doesn't answer is no reason to stop: what matters is whether the
        # packages can be had, and that is seen below.
        _refresh "$log" || say "  (some package lists could not be refreshed; going on with what is known)"
        _lists_fresh=yes
    fi

    local names=()
    for wanted in "${missing[@]}"; do
        IFS='|' read -ra choices <<<"$wanted"
        for choice in "${choices[@]}"; do
            if apt-cache show --no-all-versions "$choice" >/dev/null 2>&1; then
                names+=("$choice")
                continue 2
            fi
        done
        fail "The package ${wanted//|/ or } is not to be had from this machine's package sources." \
            "apt-get said: $(_complaint "$log")" \
            "$(_advice "$log" "Look at /etc/apt/sources.list and /etc/apt/sources.list.d, and at the network; then run this again.")"
    done

    # In a subshell, so that the hold on services is lifted however this ends.
    (
        trap _release_services EXIT
        _hold_services
        count=0
        for name in "${names[@]}"; do
            count=$((count + 1))
            # One may have come with another.
            ! package_installed "$name" || continue
            say "  installing $name ($count of ${#names[@]}) …"
            _apt "$log" install --yes --no-install-recommends "$name" ||
                fail "The package $name could not be installed." \
                    "apt-get said: $(_complaint "$log")" \
                    "$(_advice "$log" "Try it by hand to see more: apt-get install $name")"
        done
    ) || exit 1
    rm -f "$log"
}

# _apt LOG ARGUMENT…: apt-get without questions, that removes nothing; waits up to ten minutes for another one to
# finish, and says so.
_apt() {
    local log=$1 status=0 watcher
    shift
    (
        exec 2>/dev/null
        until grep -q 'Waiting for cache lock' "$log"; do sleep 1 >/dev/null; done
        _say_waiting "$log"
    ) &
    watcher=$!
    as_root env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -q \
        -o APT::Get::Remove=false -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 \
        -o Dpkg::Options::=--force-confold "$@" >"$log" 2>&1 </dev/null || status=$?
    kill "$watcher" 2>/dev/null || true
    wait "$watcher" 2>/dev/null || true
    return "$status"
}

# _refresh LOG: brings the package lists up to date. Their lock is one that apt-get itself does not wait for.
_refresh() {
    local tries
    for tries in {1..120}; do
        ! _apt "$1" update || return 0
        grep -q 'Could not get lock' "$1" || return 1
        [ "$tries" -gt 1 ] || _say_waiting "$1"
        sleep 5
    done
    return 1
}

_say_waiting() {
    say "  waiting for another package manager, up to ten minutes ($(grep -m 1 -o 'held by process [^.]*' "$1" || echo 'it has the lock')) …"
}

# What a failed apt-get said, in one line.
_complaint() {
    local said
    said=$(grep -E '^(E:|W:|Err:|dpkg: error)' "$1" | tail -n 2 | tr '\n' ' ')
    printf '%s' "${said:-nothing of interest}"
}

# _advice LOG OTHERWISE: what to do about a failed apt-get.
_advice() {
    if grep -q 'No space left\|enough free space' "$1"; then
        printf 'The disk is full: free some space (df -h), then run this again.'
    elif grep -q 'Could not get lock\|Unable to acquire' "$1"; then
        printf 'Another package manager is at work: let it finish, then run this again.'
    elif grep -q 'Could not resolve\|Could not connect\|Temporary failure' "$1"; then
        printf 'The package source does not answer: check the network or its proxy, then run this again.'
    elif grep -q 'Packages need to be removed' "$1"; then
        printf 'It would replace packages that are installed: decide about those by hand, then run this again.'
    elif grep -q 'dpkg --configure -a\|unmet dependencies' "$1"; then
        printf 'An earlier installation was cut short: run "dpkg --configure -a" and "apt-get -f install" as root, then this again.'
    else
        printf '%s' "$2"
    fi
}

# What we install is for our own use of its programs; a service that starts by itself would take
# ports and memory that nobody asked it to take. The policy goes away again with the installation.
_policy=/usr/sbin/policy-rc.d
_policy_mark='# Hyperfactory set-up: services are not started while packages are installed.'
_hold_services() {
    if [ -e "$_policy" ] && ! grep -qF "$_policy_mark" "$_policy"; then return; fi
    printf '#!/bin/sh\n%s\nexit 101\n' "$_policy_mark" | as_root tee "$_policy" >/dev/null
    as_root chmod 755 "$_policy"
}
_release_services() {
    if [ -e "$_policy" ] && grep -qF "$_policy_mark" "$_policy"; then as_root rm -f "$_policy"; fi
}

# --- Building -------------------------------------------------------------------------------------

# The oldest compiler that builds the workspace, read from where cargo reads it.
_rust_wanted() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$1/Cargo.toml" | head -n 1; }

# need_build ROOT: the compiler, the linker and the room that a build of ROOT takes.
need_build() {
    [ -z "${HOME:-}" ] || case ":$PATH:" in *":$HOME/.cargo/bin:"*) ;; *) PATH="$PATH:$HOME/.cargo/bin" ;; esac
    command -v cargo >/dev/null ||
        fail "There is no Rust toolchain here (no 'cargo' on PATH)." \
            "Install Rust $(_rust_wanted "$1") or newer with rustup, then run this again."
    local have want
    have=$(cargo --version | sed 's/^cargo \([0-9.]*\).*/\1/')
    want=$(_rust_wanted "$1")
    [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" = "$want" ] ||
        fail "Rust $want or newer is needed; here is $have." "Update it: rustup update stable"
    # The Kafka client of the bridge is built from C and C++, against the machine's OpenSSL.
    need_packages gcc g++ libc6-dev make pkg-config libssl-dev ca-certificates
}

# need_cargo_tool ROOT NAME [OPTION…]: the one on PATH, or built once, with cargo install's options, and kept under ROOT/target.
# Without optimization: that saves more time in building than it costs in running.
need_cargo_tool() { _need_cargo_tool "$1" dev "${@:2}"; }

# need_cargo_peer ROOT NAME [OPTION…]: the same for one that is measured.
need_cargo_peer() { _need_cargo_tool "$1" release "${@:2}"; }

_need_cargo_tool() {
    local tools=${CARGO_TARGET_DIR:-$1/target}/rig/cache/tools profile=$2
    shift 2
    mkdir -p "$tools"
    tools=$(cd "$tools" && pwd)
    case ":$PATH:" in *":$tools/bin:"*) ;; *) export PATH="$PATH:$tools/bin" ;; esac
    ! command -v "$1" >/dev/null || return 0
    # One script builds at a time; whoever waited finds it built.
    (
        flock 9
        ! command -v "$1" >/dev/null || exit 0
        say "  building $1 (once, some minutes; kept in $tools) …"
        CARGO_PROFILE_DEV_DEBUG=false cargo install --quiet --locked --profile "$profile" --root "$tools" \
            --target-dir "$tools/build" "$@" >"$tools/$1.log" 2>&1 ||
            fail "$1 could not be built: $(grep -m 1 '^error' "$tools/$1.log")" "The whole log: $tools/$1.log"
        rm -rf "$tools/build"
    ) 9>"$tools/lock"
}

# need_kafka_broker ROOT: tansu, with the storage that outlives it.
need_kafka_broker() { need_cargo_tool "$1" tansu --version 0.6.0 --no-default-features --features libsql; }

# need_room FOLDER MEGABYTES WHAT ADVICE: refuses to start what would run out of disk halfway.
need_room() {
    local free
    mkdir -p "$1" || fail "The folder $1 could not be made." "Check its owner and whether the disk is full (df -h)."
    free=$(df -Pm "$1" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$2" ] ||
        fail "$3 needs about $2 MB of disk; $1 has $free MB left." \
            "Free some space, or $4."
}

# --- Ports ----------------------------------------------------------------------------------------

# need_port tcp|udp ADDRESS VARIABLE: refuses to start what would find its port taken at the end of a long build.
# Whatever else may be wrong with the address is left to the program that listens there.
need_port() {
    command -v perl >/dev/null || return 0
    perl -MIO::Socket::IP -MErrno -e '
        my ($host, $port) = $ARGV[1] =~ /^\[?(.*?)\]?:(\d+)$/ or exit 0;
        my %kind = $ARGV[0] eq "tcp" ? (Type => IO::Socket::IP::SOCK_STREAM, Listen => 1, ReuseAddr => 1)
            : (Type => IO::Socket::IP::SOCK_DGRAM);
        IO::Socket::IP->new(LocalHost => $host, LocalPort => $port, %kind) or exit($!{EADDRINUSE} ? 7 : 0);
        exit 0;' "$1" "$2" 2>/dev/null || [ $? -ne 7 ] ||
        fail "Port ${2##*:} (${1^^}) is taken on this machine." \
            "Who has it: ss --listening --$1 --numeric --processes 'sport = ${2##*:}'" \
            "Stop that program, or choose another port: $3=${2%:*}:$((${2##*:} + 1)) $0"
}
