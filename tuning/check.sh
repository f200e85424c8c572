#!/usr/bin/env bash
# Compares this machine with the settings beside this script, and says what each difference costs. With --sessions it
# says instead whether this machine holds that many sessions, and which limit is hit first. Changes nothing.
#
#   check.sh                                      compare the settings
#   check.sh --sessions N [--role server|both]    size the machine; both: dispatcher, store and load generator here too
#
# Exit status: 0 when all is as advised (or N sessions are held), 1 when not, 2 on a usage error. Needs no root. What
# this shell may use counts (cgroup, ulimit, CPUs): run it where the gateway will run, inside the container for one.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=${MILLRACE_CHECK_ROOT-} # Before /proc and /sys, so that the tests can show a machine that is not there.

# What a session costs. The report of a million run (docs/results) tells these figures for one machine.
USER_BYTES=400             # B, gateway: measured 336-394 by `millrace-loadgen demo` and `idle`, the stored route included
KERNEL_BYTES=3860          # B, server's end: TCP socket 2368, inode 832, dentry 192, file 192 and small change; poll 256
KERNEL_BYTES_BOTH=10450    # B, both ends: 10.4 GB were measured for 995,000 connections over loopback
DISPATCHER_BYTES=300       # B, dispatcher, per user: what it is built to stay below
ROUTE_BYTES=136            # B, Redis: measured, one route
CLIENT_BYTES=800           # B, load generator: measured 786 with 60,000 clients, tokens made beforehand included
UNREAD_BYTES=4623          # B, a message that waits to be read or acknowledged: 4.6 GB were measured for 995,000
SLOT_BYTES=32              # B, an entry of a ring's table of direct descriptors
RING_BYTES=212992          # B, a ring's queues: 1,024 submissions of 64 and 8,192 completions of 16, in whole pages
DRIVER_BYTES=110592        # B, the second ring of a shard, for its links and timers: 312-316 KiB were measured for both
FIXED_BYTES=67108864       # B, a gateway without sessions: 40 MB measured on 2 shards, and its log
FIXED_BYTES_BOTH=268435456 # B, the same with dispatcher, Redis and load generator
SHARD_BYTES=4194304        # B, a shard's receive buffers when all are lent (1,024 of 4 KiB)
RESERVE_BYTES=536870912    # B, left to everything else on the machine
BEAT_NS=800                # ns of CPU per session and second at a 30 s heartbeat: what the gateway is built to stay below
BEAT_NS_CLIENT=400         # ns, the client's end of it: both ends together took 500-630
BEAT_PERCENT=80            # % of the CPUs that beats may take; the rest is for messages
BANK_SLOTS=16384           # sessions of one ring at most, fewer under a lower limit of open files
SHARD_SLOTS=16777216       # sessions of one shard at most (24 bits in a session id)
FILES_BESIDE=128           # descriptors of a gateway beside its rings: links, store, admin
SOURCE_CLIENTS=20000       # clients that the load generator connects from one of the addresses in 127.0.0.0/8

usage() {
  echo "check.sh: $1 (usage: check.sh [--sessions N [--role server|both]])" >&2
  exit 2
}

sessions=""
role=""
while [ $# -gt 0 ]; do
  case "$1" in
    --sessions | --role)
      [ $# -ge 2 ] || usage "$1 needs a value"
      if [ "$1" = --sessions ]; then sessions=$2; else role=$2; fi
      shift 2
      ;;
    -h | --help)
      sed -n '2,9p' "$0" | cut -c3-
      exit 0
      ;;
    *) usage "unknown argument '$1'" ;;
  esac
done
if [ -n "$sessions" ]; then
  [[ $sessions =~ ^[1-9][0-9]{0,8}$ ]] || usage "--sessions '$sessions' is not a number from 1 to 999999999"
elif [ -n "$role" ]; then
  usage "--role goes with --sessions"
fi
case "$role" in "" | server | both) ;; *) usage "--role '$role' is neither server nor both" ;; esac

# The first line of a file with its blanks made single, or the given text where there is no such file.
value() { # file, otherwise
  local -a words=()
  if [ -r "$root$1" ]; then read -ra words < "$root$1"; fi
  if [ ${#words[@]} -eq 0 ]; then words=("${2-}"); fi
  echo "${words[*]}"
}

# The limit of open files that a gateway has after it raised its soft one: the hard one.
nofile() {
  local hard
  hard=$(awk '/^Max open files/ { print $5 }' "$root/proc/self/limits" 2> /dev/null)
  case "$hard" in "" | unlimited) value /proc/sys/fs/nr_open 1048576 ;; *) echo "$hard" ;; esac
}

# Bytes that the rings of this user may take: RLIMIT_MEMLOCK, which kernels before 5.12 and recent ones (seen on 6.18)
# hold against them. Nothing where there is no limit, or this user has CAP_IPC_LOCK (bit 14), as root mostly has.
memlock() {
  local hard caps
  hard=$(awk '/^Max locked memory/ { print $5 }' "$root/proc/self/limits" 2> /dev/null)
  caps=$(awk '/^CapEff:/ { print $2 }' "$root/proc/self/status" 2> /dev/null)
  if [ "${hard:-unlimited}" = unlimited ] || (((16#${caps:-0} >> 14) & 1)); then return; fi
  echo "$hard"
}

# Whether a gateway finds an io_uring that it can use, as far as that can be told without asking for a ring.
uring() {
  local release major minor
  release=$(value /proc/sys/kernel/osrelease 0.0)
  major=${release%%[!0-9]*}
  minor=${release#*.}
  minor=${minor%%[!0-9]*}
  [ $((${major:-0} * 1000 + ${minor:-0})) -ge 6001 ] && [ "$(value /proc/sys/kernel/io_uring_disabled 0)" = 0 ]
}

# ---- the settings ---------------------------------------------------------------------------------------------------

differences=0
report() { # name, present, advised, cost
  local mark=LOW
  if is_bound "$1"; then mark=HIGH; fi
  differences=$((differences + 1))
  printf '%-5s %s = %s, advised %s\n' "$mark" "$1" "$2" "$3"
  printf '%s\n' "$4" | fold -s -w 100 | sed 's/^/      /'
}
good() { printf 'ok    %s = %s\n' "$1" "$2"; }

# These bound what a connection may take: more than advised is what costs.
is_bound() { [ "$1" = net.ipv4.tcp_rmem ] || [ "$1" = net.ipv4.tcp_wmem ]; }

# One value is enough when it is at least the advised one. Three-part settings are judged by their last part, the
# port range by how many ports it holds, and switches by being equal.
enough() { # name, present, advised
  local -a have want
  read -ra have <<< "$2"
  read -ra want <<< "$3"
  case "$1" in
    kernel.io_uring_disabled) [ "$2" = "$3" ] ;;
    net.ipv4.ip_local_port_range) [ $((have[1] - have[0])) -ge $((want[1] - want[0])) ] ;;
    *) if is_bound "$1"; then [ "${have[-1]}" -le "${want[-1]}" ]; else [ "${have[-1]}" -ge "${want[-1]}" ]; fi ;;
  esac
}

compare_settings() {
  local line reason="" name wanted file present
  while IFS= read -r line; do
    case "$line" in
      "#"*) reason="${reason:+$reason }${line#\# }" ;;
      "") reason="" ;;
      *=*)
        name=${line%%=*}
        name=${name// /}
        wanted=$(xargs <<< "${line#*=}")
        file="/proc/sys/${name//.//}"
        if [ ! -r "$root$file" ]; then
          printf 'none  %s does not exist here (module not loaded, or an older kernel): nothing to set\n' "$name"
        else
          present=$(value "$file")
          if enough "$name" "$present" "$wanted"; then
            good "$name" "$present"
          else
            report "$name" "$present" "$wanted" "$reason"
          fi
        fi
        reason=""
        ;;
    esac
  done < "$here/99-millrace.sysctl.conf"

  local files
  files=$(nofile)
  if [ "$files" -ge 20000 ]; then
    good "ulimit -Hn (nofile)" "$files"
  else
    report "ulimit -Hn (nofile)" "$files" "20000 or more" \
      "A ring holds at most this many direct descriptors: more and smaller rings are opened for the same number of clients, and on the epoll backend it is the number of clients."
  fi

  local locked
  locked=$(memlock)
  if [ -z "$locked" ]; then
    good "ulimit -Hl (memlock)" "unlimited, or no limit for this user"
  else
    report "ulimit -Hl (memlock)" "$((locked / 1024)) KiB" "unlimited" \
      "Recent kernels hold the queues of all rings of a user against it, some 208 KiB for 16,384 clients: when it is used up, no further clients are taken."
  fi

  if uring || [ "$(value /proc/sys/kernel/io_uring_disabled 0)" != 0 ]; then
    good "kernel" "$(value /proc/sys/kernel/osrelease)"
  else
    report "kernel" "$(value /proc/sys/kernel/osrelease unknown)" "6.1 or later" \
      "The io_uring backend needs deferred task running (6.1): the gateway falls back to epoll, with one real descriptor and more system calls for each client."
  fi

  # The listening ports must lie outside the range from which the kernel takes ports for outgoing connections.
  local low high port
  read -r low high <<< "$(value /proc/sys/net/ipv4/ip_local_port_range '32768 60999')"
  for port in 7400 7401 7500 7501; do
    if [ "$port" -ge "$low" ] && [ "$port" -le "$high" ]; then
      report "port $port" "inside $low-$high" "outside net.ipv4.ip_local_port_range" \
        "An outgoing connection may take the port while the server is down, and the server can't bind it again."
    fi
  done

  if [ "$differences" -eq 0 ]; then
    echo "All as advised."
  else
    echo "$differences setting(s) are not as advised. See $here/README.md for what each one moves."
    exit 1
  fi
}

# ---- the size -------------------------------------------------------------------------------------------------------

# Bytes that this cgroup and those above it still allow, page cache not counted as it can be dropped. Nothing when
# there is no limit. Slabs and socket buffers count there: a million sessions are charged to the gateway's cgroup.
cgroup_bytes() {
  local line path dir least="" limit used cache left
  while IFS= read -r line; do
    case "$line" in
      0::*) path=${line#0::}; set -- /sys/fs/cgroup memory.max memory.current inactive_file ;;
      *:memory:*) path=${line#*:memory:}; set -- /sys/fs/cgroup/memory memory.limit_in_bytes memory.usage_in_bytes total_inactive_file ;;
      *) continue ;;
    esac
    path=${path%/}
    while :; do
      dir="$1$path"
      limit=$(value "$dir/$2")
      # A version 1 group without a limit shows almost 2^63.
      if [[ $limit =~ ^[0-9]+$ ]] && [ "$limit" -lt 4611686018427387904 ]; then
        used=$(value "$dir/$3" 0)
        cache=$(awk -v name="$4" '$1 == name { print $2 }' "$root$dir/memory.stat" 2> /dev/null)
        left=$((limit - used + ${cache:-0}))
        if [ -z "$least" ] || [ "$left" -lt "$least" ]; then least=$left; fi
      fi
      [ -n "$path" ] || break
      path=${path%/*}
    done
  done < "$root/proc/self/cgroup"
  printf '%s' "$least"
}

# Thousandths of CPUs that this process may use: its affinity, or its cgroup's quota if that is less.
cpu_thousandths() {
  local list part total=0 path quota period
  list=$(awk '/^Cpus_allowed_list:/ { print $2 }' "$root/proc/self/status" 2> /dev/null)
  for part in ${list//,/ }; do
    total=$((total + (${part#*-} - ${part%-*} + 1) * 1000))
  done
  [ "$total" -gt 0 ] || total=1000
  path=$(awk -F: '$1 == 0 { print $3 }' "$root/proc/self/cgroup" 2> /dev/null)
  path=${path%/}
  while :; do
    read -r quota period <<< "$(value "/sys/fs/cgroup$path/cpu.max" 'max 100000')"
    if [ "$quota" != max ] && [ $((quota * 1000 / period)) -lt "$total" ]; then total=$((quota * 1000 / period)); fi
    [ -n "$path" ] || break
    path=${path%/*}
  done
  echo "$total"
}

limits=() # "sessions|name|what it is made of"
limit() { # sessions, name, what it is made of
  local most=$1
  [ "$most" -ge 0 ] || most=0
  limits+=("$most|$2|$3")
}
bursts=()
burst() { bursts+=("$1|$2|$3"); }
mib() { echo "$(($1 / 1048576)) MiB"; }

measure() {
  local files slots thousandths cpus ends
  files=$(nofile)
  thousandths=$(cpu_thousandths)
  cpus=$(((thousandths + 999) / 1000))
  ends=1
  if [ "$role" = both ]; then ends=2; fi

  # Memory: what a session costs in all, and what one message to everybody costs on top until it is read.
  local each fixed available tcp_pages tcp_bytes page idle during capped
  slots=$((files < BANK_SLOTS ? files : BANK_SLOTS))
  each=$((USER_BYTES + KERNEL_BYTES))
  fixed=$((FIXED_BYTES + RESERVE_BYTES + SHARD_BYTES * cpus))
  if [ "$role" = both ]; then
    each=$((USER_BYTES + KERNEL_BYTES_BOTH + DISPATCHER_BYTES + ROUTE_BYTES + CLIENT_BYTES))
    fixed=$((FIXED_BYTES_BOTH + RESERVE_BYTES + SHARD_BYTES * cpus))
  fi
  if uring; then each=$((each + ends * (SLOT_BYTES + RING_BYTES / slots))); fi
  page=$(getconf PAGESIZE 2> /dev/null || echo 4096)
  read -r _ _ tcp_pages <<< "$(value /proc/sys/net/ipv4/tcp_mem)"
  tcp_bytes=$((${tcp_pages:-4503599627370} * page))
  memory() { # name, bytes
    idle=$((($2 - fixed) / each))
    limit "$idle" "$1" "$(mib "$2") less $(mib "$fixed") fixed, $each B a session"
    # The kernel stops at tcp_mem: from there on only idle sessions are added.
    during=$((($2 - fixed) / (each + UNREAD_BYTES)))
    capped=$((($2 - fixed - tcp_bytes) / each))
    if [ "$capped" -gt "$during" ]; then during=$capped; fi
    limit "$during" "$1, a message to all" "the same, $((each + UNREAD_BYTES)) B a session while one message to everybody is unread"
  }
  available=$(awk '/^MemAvailable:/ { print $2 }' "$root/proc/meminfo" 2> /dev/null)
  if [ -n "$available" ]; then memory "memory" $((available * 1024)); fi
  available=$(cgroup_bytes 2> /dev/null)
  if [ -n "$available" ]; then memory "cgroup memory" "$available"; fi
  if [ -n "${tcp_pages-}" ]; then
    limit $((tcp_bytes / UNREAD_BYTES)) "net.ipv4.tcp_mem" "$tcp_pages pages, $UNREAD_BYTES B a session while one message to everybody is unread; above it the kernel drops what comes in, beats too"
  fi

  # Descriptors: of the process, and of the machine.
  local locked rings
  if uring; then
    locked=$(memlock)
    if [ -n "$locked" ]; then
      rings=$(((locked / ends - cpus * DRIVER_BYTES) / RING_BYTES))
      limit $((rings * slots)) "locked memory (RLIMIT_MEMLOCK)" "$((locked / 1024)) KiB for the rings of this user, $((RING_BYTES / 1024)) KiB for each ring of $slots sessions; root is exempt"
    fi
    limit $(((files - FILES_BESIDE) * slots)) "open files (io_uring)" "$files allowed, one for each ring of $slots sessions"
  else
    limit $((files - FILES_BESIDE)) "open files (epoll)" "$files allowed, one for each session: no usable io_uring here"
  fi
  local most allocated
  most=$(value /proc/sys/fs/file-max)
  if [ -n "$most" ]; then
    read -r allocated _ <<< "$(value /proc/sys/fs/file-nr '0 0 0')"
    limit $(((most - allocated) / ends)) "fs.file-max" "$most less $allocated in use, $ends for each session, direct descriptors too"
  fi

  # The gateway's own: one shard for each CPU unless told otherwise.
  limit $((SHARD_SLOTS * (cpus < 255 ? cpus : 255))) "shards" "$cpus shards, $SHARD_SLOTS sessions each"

  local beat=$BEAT_NS
  if [ "$role" = both ]; then beat=$((BEAT_NS + BEAT_NS_CLIENT)); fi
  limit $((thousandths * BEAT_PERCENT * 10000 / beat)) "cores" "$((thousandths / 1000)).$((thousandths % 1000 / 100)) CPUs, $beat ns a session and second for beats (30 s), at most $BEAT_PERCENT % of the CPUs"

  local tracked
  most=$(value /proc/sys/net/netfilter/nf_conntrack_max)
  tracked=$(value /proc/sys/net/netfilter/nf_conntrack_count 0)
  if [ -n "$most" ]; then
    if [ "$tracked" -gt 0 ]; then
      limit $((most - tracked)) "nf_conntrack_max" "$most less $tracked tracked now; new connections are dropped with no word"
    else
      notes+=("conntrack is loaded but tracks nothing now: with rules that use it, nf_conntrack_max = $most would count")
    fi
  fi

  local low high ports
  read -r low high <<< "$(value /proc/sys/net/ipv4/ip_local_port_range '32768 60999')"
  ports=$((high - low + 1))
  if [ "$role" = both ] && [ "$ports" -lt "$SOURCE_CLIENTS" ]; then
    limit "$ports" "ip_local_port_range" "$ports ports, and the load generator connects $SOURCE_CLIENTS clients from each of its addresses"
  fi

  # What everybody does at once. Sessions are held without these.
  most=$(value /proc/sys/net/ipv4/tcp_max_orphans)
  if [ -n "$most" ]; then burst "$most" "tcp_max_orphans" "dying at once with a killed gateway: more are reset instead of ended"; fi
  most=$(value /proc/sys/net/ipv4/tcp_max_tw_buckets)
  if [ -n "$most" ]; then burst "$most" "tcp_max_tw_buckets" "closed within a minute: more are forgotten early"; fi
  most=$(value /proc/sys/net/core/somaxconn)
  if [ -n "$most" ]; then
    burst $((most * cpus)) "somaxconn" "waiting to be accepted, over $cpus shards: the SYN of more is dropped and tried again after a second"
  fi
  most=$(value /proc/sys/net/ipv4/tcp_max_syn_backlog)
  if [ -n "$most" ]; then burst $((most * cpus)) "tcp_max_syn_backlog" "in the handshake, over $cpus shards: more get cookies or nothing"; fi
  most=$(value /proc/sys/net/ipv4/tcp_ehash_entries)
  # Negative in a namespace that shares the table of the machine.
  most=${most#-}
  if [ -n "$most" ] && [ $((sessions * ends / 4)) -gt "$most" ]; then
    notes+=("$((sessions * ends)) sockets share $most hash buckets: each packet looks through $((sessions * ends / most)) of them (boot with thash_entries=, or run in a network namespace that was made after net.ipv4.tcp_child_ehash_entries was set)")
  fi
}

show() { # mark, "sessions|name|detail"
  local most name detail
  IFS='|' read -r most name detail <<< "$2"
  printf '%-5s %13s  %-34s %s\n' "$1" "$most" "$name" "$detail"
}

size() {
  local entry most first held=0
  notes=()
  measure
  mapfile -t limits < <(printf '%s\n' "${limits[@]}" | sort -t '|' -k 1,1n -s)
  echo "$sessions sessions, role $role: each limit with the sessions that it holds, the first to be hit on top"
  for entry in "${limits[@]}"; do
    most=${entry%%|*}
    if [ "$most" -ge "$sessions" ]; then show ok "$entry"; else show LOW "$entry"; held=1; fi
  done
  if [ ${#bursts[@]} -gt 0 ]; then
    echo "What may happen to so many at the same time (does not keep sessions from being held)"
    mapfile -t bursts < <(printf '%s\n' "${bursts[@]}" | sort -t '|' -k 1,1n -s)
    for entry in "${bursts[@]}"; do show "" "$entry"; done
  fi
  notes+=("a gateway takes 200,000 connections unless --capacity says otherwise")
  for entry in "${notes[@]}"; do echo "note: $entry"; done
  IFS='|' read -r most first _ <<< "${limits[0]}"
  if [ "$held" -eq 0 ]; then
    echo "Holds $sessions sessions. The first limit beyond them: $first, at $most."
  else
    echo "Does not hold $sessions sessions. The first limit hit: $first, at $most."
  fi
  exit "$held"
}

if [ -n "$sessions" ]; then
  role=${role:-server}
  size
else
  compare_settings
fi
