#!/bin/sh
# The agent's command as its service has it: the same user, the same state folder.
set -eu

if [ "$(id -u)" != 0 ]; then
    echo "fedtiny-agent: the agent's state belongs to its service; use sudo" >&2
    exit 1
fi
case ${1:-} in
join | leave)
    # Only one process may hold the state. The service starts again if the device has joined.
    systemctl stop fedtiny-agent
    trap 'systemctl start fedtiny-agent' EXIT
    ;;
esac
runuser -u fedtiny -- env FEDTINY_AGENT_DIR=/var/lib/fedtiny-agent/state \
    /opt/fedtiny/bin/fedtiny-agent "$@"
if [ "${1:-}" = join ]; then
    echo "its service starts now; what it does: journalctl -fu fedtiny-agent" >&2
fi
