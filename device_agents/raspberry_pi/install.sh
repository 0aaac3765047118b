#!/bin/sh
# Installs the fedtiny agent from the folder that this script lies in, without a network.
# Run it again to repair or to update; --remove takes the agent away again.
set -eu

venv=/opt/fedtiny
command=/usr/local/bin/fedtiny-agent
unit=/etc/systemd/system/fedtiny-agent.service
settings=/etc/fedtiny-agent.env
state=/var/lib/fedtiny-agent
samples=/srv/fedtiny

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

check() {
    sha256sum --check --quiet --strict MANIFEST >&2 ||
        fail "the bundle is damaged or not whole; copy it again and unpack it anew"
    wanted=$(cat TARGET)
    found=$(python3 -c 'import sys
print("%d.%d" % sys.version_info[:2], sys.implementation._multiarch)') ||
        fail "there is no python3: sudo apt install python3"
    [ "$found" = "$wanted" ] ||
        fail "this bundle is for Python $wanted, and here is Python $found; \
make one by: fedtiny bundle --for MACHINE --python VERSION"
    case $wanted in
    *arm-linux-gnueabihf)
        python3 -c 'import _cffi_backend' 2>/dev/null ||
            fail "python3-cffi-backend is missing, which has no wheel for 32-bit Arm: \
sudo apt install python3-cffi-backend"
        shared=--system-site-packages
        ;;
    *) shared= ;;
    esac
}

install_agent() {
    # Without pip of Debian's own, so that python3-venv is not needed: pip runs from its wheel.
    python3 -m venv --clear --without-pip $shared "$venv"
    # Those of the manifest: the folder may hold the wheels of an older bundle as well.
    wheels=$(sed -n 's/^[0-9a-f]*  \(wheels\/.*\)$/\1/p' MANIFEST)
    pip=$(echo "$wheels" | grep '^wheels/pip-')
    wheels=$(echo "$wheels" | grep -v '^wheels/pip-')
    # shellcheck disable=SC2086 # names of wheels have no spaces
    "$venv/bin/python" "$pip/pip" --isolated --quiet install --no-index --no-deps \
        --no-cache-dir --disable-pip-version-check --root-user-action=ignore $wheels
    install -D -m 755 fedtiny-agent.sh "$command"
}

install_service() {
    getent passwd fedtiny >/dev/null ||
        useradd --system --user-group --home-dir "$state" --shell /usr/sbin/nologin fedtiny
    install -d -m 700 -o fedtiny -g fedtiny "$state"
    [ -d "$samples" ] || install -d -m 755 "$samples"
    [ -e "$settings" ] || install -m 644 fedtiny-agent.env "$settings"
    install -D -m 644 fedtiny-agent.service "$unit"
    systemctl daemon-reload
    systemctl --quiet enable fedtiny-agent
    # Does nothing before the device has joined.
    systemctl restart fedtiny-agent
}

remove() {
    if [ -e "$unit" ]; then
        systemctl --quiet disable --now fedtiny-agent
        rm "$unit"
        systemctl daemon-reload
    fi
    rm -rf "$venv" "$command"
    echo "The agent is gone. Kept: $state (the device's identity), $settings, $samples."
}

[ "$(id -u)" = 0 ] || fail "it must be root: sudo $0"
cd "$(dirname "$0")"
case ${1:-} in
"")
    check
    install_agent
    install_service
    echo "The agent is installed. Its samples: .npz or .csv files in $samples (or see $settings)."
    echo "Next: sudo fedtiny-agent join STRING    # from \`fedtiny token create\`"
    ;;
--remove) remove ;;
*) fail "unknown argument $1; there is --remove, and nothing else" ;;
esac
