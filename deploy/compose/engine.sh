#!/usr/bin/env bash
# engine.sh COMMAND...: runs a command with a Docker engine of its own, and takes the engine away afterwards.
#
# The engine lives in new network, mount and process namespaces and keeps its data in a temporary folder. So
# its bridge, its firewall rules, the ports it publishes and its sockets meet nothing of the machine's, not
# even another Docker that runs there; and when the first process of the process namespace ends, however it
# ends, the kernel ends the engine and every container with it. COMMAND runs inside too: 127.0.0.1 is that
# network's own, and nothing outside can be reached. Needs root, dockerd, ip and unshare.
set -euo pipefail

# inside DIR COMMAND...: the first process of the namespaces.
inside() {
	local dir=$1 engine status=0
	shift
	# What dockerd would find of the machine's Docker, and leave behind for it, is under /run.
	mount -t tmpfs tmpfs /run
	ip link set lo up
	echo '{}' >"$dir/daemon.json" # instead of the machine's /etc/docker/daemon.json
	export DOCKER_HOST=unix://$dir/docker.sock DOCKER_CONFIG=$dir/client
	unset DOCKER_CONTEXT DOCKER_TLS_VERIFY DOCKER_CERT_PATH

	# systemd, where there is one, knows our processes by other numbers, so control groups are made without it.
	dockerd --config-file "$dir/daemon.json" --host "$DOCKER_HOST" --pidfile "$dir/docker.pid" \
		--data-root "$dir/data" --exec-root "$dir/exec" \
		--exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$(basename "$dir")" \
		>"$dir/dockerd.log" 2>&1 &
	engine=$!
	until docker version >/dev/null 2>&1; do
		if ! kill -0 "$engine" 2>/dev/null || [ $SECONDS -gt 60 ]; then
			echo "engine.sh: dockerd does not come up; the end of its log:" >&2
			tail -n 30 "$dir/dockerd.log" >&2
			return 1
		fi
		sleep 0.1
	done
	"$@" || status=$?
	kill "$engine"
	wait "$engine" || true
	return $status
}

if [ "${1-}" = --inside ]; then
	shift
	inside "$@"
	exit
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/fairway-engine.XXXXXX")
cleanup() {
	kill -KILL "$child" 2>/dev/null || true # with --kill-child, everything inside dies with it
	wait "$child" 2>/dev/null || true
	find /sys/fs/cgroup -depth -type d -path "*/$(basename "$dir")*" -exec rmdir {} + 2>/dev/null || true
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP
unshare --net --mount --pid --fork --kill-child --mount-proc -- "$0" --inside "$dir" "$@" &
child=$!
wait "$child"
