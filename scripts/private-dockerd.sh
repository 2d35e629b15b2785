# Sourced by test.sh: starts a Docker daemon of our own in a temporary folder, points DOCKER_HOST at
# it, and stops it (with every container in it) when the sourcing script exits.
# shellcheck shell=bash

private_docker="$(mktemp -d "${TMPDIR:-/tmp}/meshwork-docker.XXXXXX")"

stop_private_dockerd() {
  if [ -f "$private_docker/pid" ]; then
    pid=$(cat "$private_docker/pid")
    as_root kill "$pid" 2>/dev/null || true
    for _ in $(seq 50); do as_root kill -0 "$pid" 2>/dev/null || break; sleep 0.2; done
  fi
  as_root rm -rf "$private_docker" 2>/dev/null || true
}
trap stop_private_dockerd EXIT

start_private_dockerd() {
  # No bridge and no packet filter: the host's network stays as it is, and no test needs one.
  as_root dockerd --bridge=none --iptables=false --ip6tables=false \
    --data-root "$private_docker/data" --exec-root "$private_docker/exec" \
    --host "unix://$private_docker/docker.sock" --pidfile "$private_docker/pid" \
    --group "$(id -gn)" >"$private_docker/log" 2>&1 &
  for _ in $(seq 150); do
    docker --host "unix://$private_docker/docker.sock" info >/dev/null 2>&1 && return 0
    kill -0 $! 2>/dev/null || return 1
    sleep 0.2
  done
  return 1
}

if start_private_dockerd; then
  export DOCKER_HOST="unix://$private_docker/docker.sock"
  docker version --format 'docker {{.Server.Version}}, private, at '"$private_docker"
else
  echo "private-dockerd: the daemon did not start; its log:" >&2
  tail -n 30 "$private_docker/log" >&2
  exit 1
fi
