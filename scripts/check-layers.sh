#!/usr/bin/env bash
# Dependencies point one way only (docs/architecture.md). Fails when a crate has grown an edge that
# the architecture forbids.
set -euo pipefail
cd "$(dirname "$0")/.."

status=0
forbid() { # forbid CRATE FORBIDDEN...: CRATE's normal dependencies must not contain these
  local crate=$1 tree; shift
  tree=$(cargo tree --quiet --package "$crate" --edges normal --prefix none --format '{p}' | cut -d' ' -f1 | sort -u)
  for other in "$@"; do
    if grep -qx "$other" <<<"$tree"; then
      echo "layers: $crate must not depend on $other" >&2
      status=1
    fi
  done
}

io="tokio quinn quinn-udp socket2 mio rand getrandom"
# shellcheck disable=SC2086
forbid meshwork-identity $io meshwork-proto meshwork-mesh
# shellcheck disable=SC2086
forbid meshwork-proto $io meshwork-mesh
# shellcheck disable=SC2086
forbid meshwork-sched $io meshwork-mesh meshwork-agent meshwork-manager
forbid meshwork-mesh meshwork-agent meshwork-manager meshwork-sched meshwork-netsim rustls bollard
forbid meshwork-agent meshwork-mesh meshwork-manager meshwork-sched quinn
forbid meshwork-manager meshwork-mesh meshwork-agent quinn bollard
forbid meshwork meshwork-netsim rustls openssl native-tls redis async-nats shuttle
[ "$status" = 0 ] && echo "layers: every dependency points the right way"
exit "$status"
