#!/usr/bin/env bash
# Passes the tests on a fresh Debian or Ubuntu machine with only Rust on it: installs what is
# missing, starts what is not running, then format, lints, dependency rules and every test.
set -euo pipefail
cd "$(dirname "$0")"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"
# Debian keeps servers in sbin, which is not on everybody's path.
PATH="$PATH:/usr/sbin:/sbin"
# What users of the library choose and the binary leaves out. Everything below is built with it, so
# that nothing is built twice.
features=(--features meshwork-mesh/redis,meshwork-mesh/nats)

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

apt_install() {
  have apt-get || { echo "test.sh: $* missing and there is no apt-get here: install them by hand" >&2; exit 1; }
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}
# Packages of which only the programs are wanted: their services are neither started nor enabled.
apt_install_programs() (
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'as_root rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
  fi
  apt_install "$@"
  ! have systemctl || as_root systemctl disable "$@" >/dev/null 2>&1 || true
)

say "tools"
missing=() servers=()
{ have cc && have c++; } || missing+=(build-essential)
{ [ -x /bin/busybox ] || [ -x /usr/bin/busybox ]; } || missing+=(busybox-static)
have curl || missing+=(curl)
if [ -z "${MESHWORK_SKIP_DOCKER:-}" ]; then
  have dockerd || missing+=(docker.io)
  have iptables || missing+=(iptables)
  # The NAT tests: namespaces, and a router that forwards ports on request.
  { have ip && have ss; } || missing+=(iproute2)
  have nft || missing+=(nftables)
  # The program alone; the package `miniupnpd` would start it on this machine.
  have miniupnpd || missing+=(miniupnpd-nftables)
  # The event bus's adapters: each test starts a server of its own.
  have redis-server || servers+=(redis-server)
  have nats-server || servers+=(nats-server)
fi
[ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
[ ${#servers[@]} = 0 ] || apt_install_programs "${servers[@]}"
# Newer Debian releases only recommend the client, as a package of its own.
[ -n "${MESHWORK_SKIP_DOCKER:-}" ] || have docker || apt_install docker-cli
cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
for tool in cargo-machete cargo-deny; do
  have "$tool" || [ -x "target/tools/bin/$tool" ] \
    || cargo install --quiet --locked --root target/tools --target-dir target/tools/build "$tool"
done
PATH="$PWD/target/tools/bin:$PATH"

# Some image that Docker can run must be at hand; the tests build theirs from these static files.
if [ -z "${MESHWORK_SKIP_DOCKER:-}" ] && ! docker info >/dev/null 2>&1; then
  say "docker: no daemon answers, starting a private one"
  source scripts/private-dockerd.sh
fi

say "format"
cargo fmt --all --check

say "dependency rules"
scripts/check-layers.sh
cargo machete --skip-target-dir
cargo deny --workspace --log-level error check bans licenses sources

say "lints"
cargo clippy --workspace "${features[@]}" --all-targets --quiet -- -D warnings

say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace "${features[@]}" --no-deps --quiet

say "tests"
cargo test --workspace "${features[@]}" --doc --quiet
# Namespaces need root: for another user those tests run by themselves, through sudo.
own_root=
[ "$(id -u)" = 0 ] || [ -n "${MESHWORK_SKIP_DOCKER:-}" ] || own_root=yes
if have cargo-nextest; then
  cargo nextest run --workspace "${features[@]}" ${own_root:+-E 'not binary(nat)'}
elif [ -n "$own_root" ]; then
  cargo test --workspace "${features[@]}" --exclude meshwork --no-fail-fast
  cargo test -p meshwork "${features[@]}" --no-fail-fast --bins --test it --test docker
else
  cargo test --workspace "${features[@]}" --no-fail-fast
fi
if [ -n "$own_root" ]; then
  runner=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
  env "CARGO_TARGET_${runner}_RUNNER=sudo -E" cargo test -p meshwork "${features[@]}" --test nat -- --test-threads 2
fi

say "the event bus, in every order of its threads' steps"
cargo test --workspace "${features[@]}" --features meshwork-mesh/shuttle --lib --quiet \
  bus::tests::permutations
say "all passed"
