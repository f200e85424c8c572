#!/usr/bin/env bash
# Brings up a million live sessions on this machine and prints what they cost: builds the load generator, sets what
# the kernel needs (saying what it changes, and putting it back at the end), and runs `millrace-loadgen million`.
# Flags are passed on: --sessions N for fewer, --json FILE and --html FILE for the report; --help tells the others.
# Needs root for the kernel's settings only; without it, it says which ones are too low and goes on. Where the
# machine's hash table of connections is too small for both ends, root gets a network namespace with a larger one.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

sessions=1000000
help=""
previous=""
for word in "$@"; do
  case "$word" in
    -h | --help) help=yes ;;
    --sessions=*) sessions=${word#*=} ;;
  esac
  if [ "$previous" = --sessions ]; then sessions=$word; fi
  previous=$word
done
case "$sessions" in
  "" | *[!0-9]*) echo "million.sh: --sessions '$sessions': expected a number" >&2; exit 2 ;;
esac

if [ -z "${MILLRACE_OWN_NETWORK:-}" ]; then
  cargo build --release --quiet --manifest-path "$here/../Cargo.toml" --bin millrace-loadgen
fi
loadgen=${CARGO_TARGET_DIR:-$here/../target}/release/millrace-loadgen
if [ -n "$help" ]; then
  sed -n '2,6p' "$0" | cut -c3-
  exec "$loadgen" million --help
fi

# Which limit is hit first; it may well hold fewer than it estimates, so this is for the reader.
check() {
  bash "$here/check.sh" --sessions "$sessions" --role both >&2 || true
}

# Negative in a namespace that shares the table of the machine.
have_buckets=$(cat /proc/sys/net/ipv4/tcp_ehash_entries 2> /dev/null || echo 0)

saved=()
# shellcheck disable=SC2317 # called by the trap
put_back() {
  local entry
  for entry in "${saved[@]+"${saved[@]}"}"; do
    if printf '%s' "${entry#*=}" > "/proc/sys/${entry%%=*}" 2> /dev/null; then
      echo "million.sh: put back ${entry%%=*} = ${entry#*=}" >&2
    else
      echo "million.sh: could not put back ${entry%%=*} = ${entry#*=}" >&2
    fi
  done
  saved=()
}
trap put_back EXIT
# The load generator gets Ctrl-C too, and ends in order; the settings are put back after it.
trap : INT TERM

# Raises a setting if it is lower: each number of it by its place.
at_least() { # name below /proc/sys, numbers wanted, what it is for
  local file="/proc/sys/$1" have want
  [ -r "$file" ] || return 0
  have=$(tr '\t' ' ' < "$file")
  want=$(awk -v have="$have" -v want="$2" 'BEGIN {
    n = split(have, h, " "); split(want, w, " ")
    for (i = 1; i <= n; i++) printf "%s%.0f", (i > 1 ? " " : ""), (h[i] > w[i] ? h[i] : w[i])
  }')
  [ "$have" = "$want" ] && return 0
  if printf '%s' "$want" > "$file" 2> /dev/null; then
    saved+=("$1=$have")
    echo "million.sh: $1 = $want (was $have): $3" >&2
  else
    echo "million.sh: $1 = $have is below $want, and this user may not set it: $3" >&2
  fi
}

spare=$((sessions + sessions / 8 + 1000))
if [ -z "${MILLRACE_OWN_NETWORK:-}" ]; then
  # In pages, for a fan-out to everyone that nobody has read yet: the kernel takes some 4.6 KB for each.
  pages=$((sessions * 5 / 4 + 100000))
  at_least net/ipv4/tcp_mem "$((pages / 2)) $((pages * 3 / 4)) $pages" "TCP's buffers while everyone is sent to"
  at_least net/ipv4/tcp_max_orphans "$spare" "sockets of a gateway that was killed"
  # Both ends are on this machine, so each connection is tracked twice.
  at_least net/netfilter/nf_conntrack_max "$((spare * 2))" "connections that the firewall tracks"
  # A packet finds its socket by walking a chain of this table; the machine's own was sized at boot.
  if [ "${have_buckets#-}" -lt "$((sessions * 2))" ]; then
    if [ -w /proc/sys/net/ipv4/tcp_child_ehash_entries ] && command -v ip > /dev/null \
      && unshare --net true 2> /dev/null; then
      at_least net/ipv4/tcp_child_ehash_entries "$((sessions * 2))" "hash table of connections in a new network namespace"
      check
      echo "million.sh: goes on in a network namespace of its own, with the kernel's defaults but for what follows" >&2
      status=0
      MILLRACE_OWN_NETWORK=yes unshare --net bash "$here/million.sh" "$@" || status=$?
      exit "$status"
    fi
    echo "million.sh: $have_buckets hash buckets for $((sessions * 2)) sockets: heartbeats cost some 10 % more CPU (a network namespace with more needs root, unshare and ip, Linux 6.1)" >&2
  fi
else
  ip link set lo up
  case "$have_buckets" in
    -*) echo "million.sh: the kernel had no memory for a larger hash table: heartbeats cost some 10 % more CPU" >&2 ;;
  esac
fi
at_least net/ipv4/tcp_max_tw_buckets "$spare" "connections that wait after their end"
# In the storm all of them come at once. A SYN that finds no room is sent again after 1, 2, 4, ... seconds.
at_least net/core/somaxconn "$spare" "connects that wait to be accepted"
at_least net/ipv4/tcp_max_syn_backlog 8192 "connects on their way"
[ -n "${MILLRACE_OWN_NETWORK:-}" ] || check

# What is promised holds under this limit; a lower one makes more and smaller rings.
hard=$(ulimit -Hn)
if [ "$hard" = unlimited ] || [ "$hard" -ge 20000 ]; then ulimit -Sn 20000; else ulimit -Sn "$hard"; fi
echo "million.sh: $sessions sessions under ulimit -n $(ulimit -Sn)" >&2

status=0
"$loadgen" million "$@" || status=$?
exit "$status"
