#!/usr/bin/env bash
# Compares this machine with the settings beside this script, and says what each difference costs. Changes nothing.
# Exit status: 0 when all is as advised, 1 when something differs, 2 on a usage error.
set -u
here=$(cd "$(dirname "$0")" && pwd)
differences=0

case "${1-}" in
  "") ;;
  -h | --help) sed -n '2,3p' "$0" | cut -c3-; exit 0 ;;
  *) echo "check.sh: unknown argument '$1' (it takes none)" >&2; exit 2 ;;
esac

report() { # name, present, advised, cost
  differences=$((differences + 1))
  printf 'LOW   %s = %s, advised %s\n' "$1" "$2" "$3"
  printf '%s\n' "$4" | fold -s -w 100 | sed 's/^/      /'
}
good() { printf 'ok    %s = %s\n' "$1" "$2"; }

# One value is enough when it is at least the advised one. Three-part settings are judged by their last part, the
# port range by how many ports it holds, and switches by being equal.
enough() { # name, present, advised
  local have=($2) want=($3)
  case "$1" in
    kernel.io_uring_disabled) [ "$2" = "$3" ] ;;
    net.ipv4.ip_local_port_range) [ $((have[1] - have[0])) -ge $((want[1] - want[0])) ] ;;
    *) [ "${have[-1]}" -ge "${want[-1]}" ] ;;
  esac
}

reason=""
while IFS= read -r line; do
  case "$line" in
    "#"*) reason="${reason:+$reason }${line#\# }" ;;
    "") reason="" ;;
    *=*)
      name=$(printf '%s' "${line%%=*}" | tr -d ' ')
      want=$(printf '%s' "${line#*=}" | xargs)
      file="/proc/sys/$(printf '%s' "$name" | tr . /)"
      if [ ! -r "$file" ]; then
        printf 'none  %s does not exist here (module not loaded, or an older kernel): nothing to set\n' "$name"
      else
        have=$(tr '\t' ' ' < "$file" | xargs)
        if enough "$name" "$have" "$want"; then good "$name" "$have"; else report "$name" "$have" "$want" "$reason"; fi
      fi
      reason=""
      ;;
  esac
done < "$here/99-millrace.sysctl.conf"

nofile=$(ulimit -Hn)
if [ "$nofile" = unlimited ] || [ "$nofile" -ge 20000 ]; then
  good "ulimit -Hn (nofile)" "$nofile"
else
  report "ulimit -Hn (nofile)" "$nofile" "20000 or more" \
    "A ring holds at most this many direct descriptors: more and smaller rings are opened for the same number of clients, and on the epoll backend it is the number of clients."
fi

release=$(uname -r)
major=${release%%.*}
minor=${release#*.}
minor=${minor%%[!0-9]*}
if [ "$major" -gt 6 ] || { [ "$major" -eq 6 ] && [ "$minor" -ge 1 ]; }; then
  good "kernel" "$release"
else
  report "kernel" "$release" "6.1 or later" \
    "The io_uring backend needs deferred task running (6.1): the gateway falls back to epoll, with one real descriptor and more system calls for each client."
fi

# The listening ports must lie outside the range from which the kernel takes ports for outgoing connections.
read -r low high < /proc/sys/net/ipv4/ip_local_port_range
for port in 7400 7401 7500 7501; do
  if [ "$port" -ge "$low" ] && [ "$port" -le "$high" ]; then
    report "port $port" "inside $low-$high" "outside net.ipv4.ip_local_port_range" \
      "An outgoing connection may take the port while the server is down, and the server can't bind it again."
  fi
done

if [ "$differences" -eq 0 ]; then
  echo "All as advised."
else
  echo "$differences setting(s) below what is advised. See $here/99-millrace.sysctl.conf and millrace.limits.conf."
  exit 1
fi
