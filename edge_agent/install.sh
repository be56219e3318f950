#!/bin/sh
# Installs the PocketGrid device agent on Termux (Android), Debian, Raspberry Pi OS and their relatives.
# Asks nothing, may be run again at any time, and says with --dry-run what it would do.
set -eu

NAME=pocketgrid-agent

usage() {
    cat <<'USAGE'
usage: install.sh [OPTION...]

Makes this machine a device of a PocketGrid: installs the packages of the distribution first, so that nothing is
compiled here, then the agent into a virtual environment of its own, then what starts it with the machine. Run it again
to update, or with other options to change the settings.

  --join HOST:PORT          become a device of the grid there; with the next two, from the join command
  --token TOKEN             or --token-file FILE, its first line is the token; it is not kept
  --ca-sha256 HEX           of the grid's authority
  --name NAME               of the device; default: made from the host name
  --profile NAME            phone, laptop, stationary or custom; default: what suits the machine
  --wheel FILE              install this wheel instead of asking the package index
  --offline                 use no network: no packages of the distribution, no dependencies, no package index
  --system, --user          systemd service of the machine or of this user; default: of the machine when root
  --no-service              install nothing that starts the agent
  --uninstall               remove the agent; its name and results that were not delivered stay
  --purge                   with --uninstall: remove these as well
  --dry-run                 print what would be done, and do nothing
  --help
USAGE
}

say() { printf '%s\n' "$*"; }
fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

# Everything that changes anything goes through one of these two.
run() {
    if [ "$dry" = yes ]; then
        printf '+'
        printf ' %s' "$@"
        printf '\n'
    else
        "$@"
    fi
}
write() { # write FILE MODE, content from standard input; whole or not at all
    if [ "$dry" = yes ]; then
        say "+ write $1 (mode $2)"
        sed 's/^/  | /'
    else
        mkdir -p "$(dirname "$1")"
        (umask 077 && cat >"$1.new")
        chmod "$2" "$1.new"
        mv "$1.new" "$1"
    fi
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        run "$@"
    elif command -v sudo >/dev/null 2>&1; then
        run sudo -n "$@"
    else
        fail "root is needed for: $*"
    fi
}

join='' token='' token_file='' ca_sha256='' name='' profile='' wheel=''
offline=no scope='' service=yes uninstall=no purge=no dry=no

while [ $# -gt 0 ]; do
    case $1 in
        --join | --token | --token-file | --ca-sha256 | --name | --profile | --wheel)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case $1 in
                --join) join=$2 ;;
                --token) token=$2 ;;
                --token-file) token_file=$2 ;;
                --ca-sha256) ca_sha256=$2 ;;
                --name) name=$2 ;;
                --profile) profile=$2 ;;
                --wheel) wheel=$2 ;;
            esac
            shift
            ;;
        --offline) offline=yes ;;
        --system) scope=system ;;
        --user) scope=user ;;
        --no-service) service=no ;;
        --uninstall) uninstall=yes ;;
        --purge) purge=yes ;;
        --dry-run) dry=yes ;;
        --help | -h)
            usage
            exit 0
            ;;
        *) fail "there is no option $1; see --help" ;;
    esac
    shift
done

case $join in
    '' | *:[0-9]*) ;;
    *) fail "--join $join: say HOST:PORT" ;;
esac
if [ -n "$join" ] && { [ -z "$ca_sha256" ] || [ -z "$token$token_file" ]; }; then
    fail "--join needs --token (or --token-file) and --ca-sha256, which are in the join command"
fi
case $profile in
    *[\"\\]*) fail "values cannot hold quotes or backslashes" ;;
esac
for file in "$token_file" "$wheel"; do
    [ -z "$file" ] || [ -r "$file" ] || fail "cannot read $file"
done

termux=no
case ${PREFIX:-} in
    *com.termux*) termux=yes ;;
esac
if [ "$termux" = yes ]; then
    scope=termux
elif [ -z "$scope" ]; then
    if [ "$(id -u)" = 0 ]; then scope=system; else scope=user; fi
fi
if [ "$scope" = system ] && [ "$(id -u)" != 0 ] && [ "$dry" = no ]; then
    fail "--system needs root: run it with sudo, or leave it out"
fi

home=${HOME:-}
[ -n "$home" ] || [ "$scope" = system ] || fail "HOME is not set"
if [ "$scope" = system ]; then
    root=${DESTDIR:-}
    place=$root/opt/$NAME config=$root/etc/$NAME
    state=$root/var/lib/$NAME cache=$root/var/cache/$NAME
    unit=$root/etc/systemd/system/$NAME.service
else
    place=${XDG_DATA_HOME:-$home/.local/share}/$NAME config=${XDG_CONFIG_HOME:-$home/.config}/$NAME
    state=${XDG_STATE_HOME:-$home/.local/state}/$NAME cache=${XDG_CACHE_HOME:-$home/.cache}/$NAME
    unit=${XDG_CONFIG_HOME:-$home/.config}/systemd/user/$NAME.service
fi
boot=$home/.termux/boot/$NAME
agent=$place/bin/pocketgrid-agent

# Whether a manager of services answers: in a chroot, a container or an image that is being built none does.
services() {
    command -v systemctl >/dev/null 2>&1 || return 1
    case $scope in
        system) [ -z "${DESTDIR:-}" ] && [ -d /run/systemd/system ] ;;
        user) systemctl --user show-environment >/dev/null 2>&1 ;;
        *) return 1 ;;
    esac
}
manage() {
    if [ "$scope" = user ]; then run systemctl --user "$@"; else run systemctl "$@"; fi
}

remove() {
    if services && [ -e "$unit" ]; then manage disable --now "$NAME.service" || true; fi
    if [ -f "$state/boot.pid" ]; then run kill "$(cat "$state/boot.pid")" 2>/dev/null || true; fi
    run rm -rf "$place"
    run rm -f "$unit" "$boot"
    if services; then manage daemon-reload || true; fi
    if [ "$purge" = yes ]; then
        run rm -rf "$config" "$state" "$cache"
        say "removed, with its settings, name and results"
    else
        say "removed; $config, $state and $cache are kept (--purge removes them, too)"
    fi
}

packages() {
    if [ "$offline" = yes ]; then
        return
    elif [ "$termux" = yes ]; then
        # What Termux builds for Android; pip would try to compile it on the phone, for hours, and fail.
        run pkg install -y python python-numpy python-onnxruntime python-grpcio python-cryptography termux-tools
    elif command -v apt-get >/dev/null 2>&1; then
        if python3 -c 'import ensurepip, venv' 2>/dev/null; then
            say "python3 and python3-venv are there"
        else
            as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv
        fi
    elif ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        fail "install Python 3.11 or newer with venv first; this distribution's way to do that is not known here"
    fi
}

python_command() {
    if [ "$termux" = yes ] && command -v python >/dev/null 2>&1; then echo python; else echo python3; fi
}

environment() {
    python=$(python_command)
    if [ "$dry" = no ]; then
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            fail "$("$python" --version) is too old; Python 3.11 or newer is needed"
    fi
    # One of an older Python does not outlive an upgrade of the distribution.
    if [ -x "$place/bin/python" ] && [ "$("$place/bin/python" --version 2>&1)" = "$("$python" --version 2>&1)" ]; then
        say "$place is there"
    elif [ "$termux" = yes ] || [ "$offline" = yes ]; then
        run "$python" -m venv --clear --system-site-packages "$place"
    else
        run "$python" -m venv --clear "$place"
    fi
    what=${wheel:-pocketgrid}
    # Only what is built: a device must never begin to compile.
    set -- "$place/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: --upgrade
    if [ "$offline" = yes ]; then
        run "$@" --no-index --no-deps --force-reinstall "$what"
    elif [ "$termux" = yes ]; then
        run "$@" protobuf
        run "$@" --no-deps "$what"
    else
        run "$@" "${what}[agent]"
    fi
}

settings() {
    run mkdir -p "$config"
    file=$config/config.toml
    if [ -e "$file" ] && [ -z "$profile" ]; then
        say "$file is kept as it is"
        return
    fi
    {
        say "# Settings of the PocketGrid agent: every option of \`pocketgrid-agent --help\`, without the dashes."
        [ -z "$profile" ] || say "profile = \"$profile\""
        if [ -e "$file" ]; then grep -Ev '^(#|profile = )' "$file" || true; fi
    } | write "$file" 644
}

# The key is made here, by the agent, and stays in its state folder. systemd hands that folder to the service's own user.
join_grid() {
    [ -n "$join" ] || return 0
    set -- "$agent" join "$join" --ca-sha256 "$ca_sha256" --state-dir "$state"
    [ -z "$token_file" ] || set -- "$@" --token-file "$token_file"
    [ -z "$name" ] || set -- "$@" --name "$name"
    # Other users may see what a command is given, but not its environment.
    if [ -n "$token" ]; then export POCKETGRID_JOIN_TOKEN="$token"; fi
    run "$@"
}

joined() { [ "$dry" = yes ] || [ -e "$state/credentials.json" ]; }

unit_text() {
    bin=${agent#"${root:-}"} etc=${config#"${root:-}"}
    cat <<UNIT
[Unit]
Description=PocketGrid device agent
Documentation=man:systemd.service(5)
Wants=network-online.target
After=network-online.target

[Service]
UNIT
    if [ "$scope" = system ]; then
        cat <<UNIT
ExecStart=$bin run --config $etc/config.toml --state-dir /var/lib/$NAME --cache-dir /var/cache/$NAME
DynamicUser=yes
StateDirectory=$NAME
CacheDirectory=$NAME
ProtectHome=yes
ProtectSystem=strict
PrivateTmp=yes
PrivateDevices=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
UNIT
    else
        say "ExecStart=$bin run --config $etc/config.toml"
    fi
    cat <<UNIT
NoNewPrivileges=yes
Restart=on-failure
RestartSec=5
# Wrong options, and a gateway that refuses this device for good: starting again helps neither.
RestartPreventExitStatus=2 3
# It finishes what it has begun, within 30 s.
TimeoutStopSec=40
# Whatever else runs on the machine comes first.
Nice=10
CPUWeight=20
IOSchedulingClass=idle

[Install]
UNIT
    if [ "$scope" = system ]; then say "WantedBy=multi-user.target"; else say "WantedBy=default.target"; fi
}

boot_text() {
    cat <<BOOT
#!$PREFIX/bin/sh
# Started by the app Termux:Boot when the phone starts. The wake lock keeps Android from stopping it with the screen off.
termux-wake-lock
mkdir -p "$state"
log="$state/log"
echo \$\$ >"$state/boot.pid"
child=''
trap 'trap "" TERM; [ -z "\$child" ] || kill "\$child"; wait; rm -f "$state/boot.pid"; exit 0' TERM INT
while :; do
    if [ -f "\$log" ] && [ "\$(wc -c <"\$log")" -gt 1000000 ]; then mv "\$log" "\$log.1"; fi
    nice -n 10 "$agent" run --config "$config/config.toml" >>"\$log" 2>&1 &
    child=\$!
    status=0
    wait "\$child" || status=\$?
    # In good order; with wrong options; refused for good. Starting again helps none of them.
    case \$status in 0 | 2 | 3) break ;; esac
    sleep 5
done
rm -f "$state/boot.pid"
BOOT
}

start() {
    if ! joined; then
        say "this device has not joined a grid yet; run this again with what the join command says: --join HOST:PORT ..."
    fi
    if [ "$service" = no ]; then
        say "start it with: $agent run --config $config/config.toml"
    elif [ "$termux" = yes ]; then
        boot_text | write "$boot" 755
        say "install the app Termux:Boot and open it once; to start the agent now: sh $boot &"
    else
        unit_text | write "$unit" 644
        if services; then
            manage daemon-reload
            manage enable "$NAME.service"
            if joined; then manage restart "$NAME.service"; fi
            if [ "$scope" = user ]; then
                run loginctl enable-linger 2>/dev/null || say "run \`sudo loginctl enable-linger $(id -un)\`, or it stops when you log out"
            fi
        else
            say "no service manager answers; $unit starts the agent once there is one"
        fi
    fi
}

if [ "$uninstall" = yes ]; then
    remove
    exit 0
fi
packages
environment
settings
join_grid
start
if [ "$dry" = no ]; then
    say "installed: $("$agent" --version); to look for trouble: $agent doctor --config $config/config.toml"
fi
