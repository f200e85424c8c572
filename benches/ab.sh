#!/usr/bin/env bash
# Compares two revisions in one run: builds the benches of both, runs them in turns, and prints for each bench both
# medians and how much B takes of A's time, with the spread over the rounds.
#
# usage: benches/ab.sh REV_A REV_B [FILTER]     e.g. benches/ab.sh main HEAD gateway/
#
# Revisions are what git knows: branches, tags, commits; uncommitted changes are not measured. FILTER is a regular
# expression over names of benches. ROUNDS (5) and SECONDS_EACH (1, per bench and round) come from the environment.
# Machines drift while they measure: turns make both revisions drift alike, and a ratio is taken within each round.
set -euo pipefail

fail() { echo "benches/ab.sh: $1" >&2; exit 2; }
[ $# -ge 2 ] && [ $# -le 3 ] || { sed -n '5p' "$0" | cut -c3- >&2; exit 2; }
cd "$(dirname "$0")/.."
filter=${3:-}
rounds=${ROUNDS:-5}
seconds=${SECONDS_EACH:-1}
[[ $rounds =~ ^[1-9][0-9]*$ ]] || fail "ROUNDS=$rounds is not a number of rounds"
commit() { git rev-parse --verify --quiet --end-of-options "$1^{commit}" || fail "git knows no revision $1"; }
a=$(commit "$1")
b=$(commit "$2")
declare -A revision=([A]=$a [B]=$b)

# Kept from run to run, so that what both share is built once; the worktrees in it are not.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/ab
mkdir -p "$CARGO_TARGET_DIR"
CARGO_TARGET_DIR=$(realpath "$CARGO_TARGET_DIR") # the builds run elsewhere
exec {lock}> "$CARGO_TARGET_DIR/lock"
flock --nonblock "$lock" || fail "another comparison runs in $CARGO_TARGET_DIR"
tree=$CARGO_TARGET_DIR/tree
dir=$(mktemp -d)
clean() {
  for side in A B; do git worktree remove --force --force "$tree/$side" 2> /dev/null || true; done
  rm -rf "$dir" "$tree"
  git worktree prune
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

rm -rf "$tree" # of a run that was killed
git worktree prune
for side in A B; do
  git worktree add --quiet --detach "$tree/$side" "${revision[$side]}"
  echo "$side: $(git log -1 --format='%h %s' "${revision[$side]}")"
  (cd "$tree/$side" && cargo bench --quiet --package millrace-benches --no-run --message-format=json) > "$dir/$side.json" ||
    fail "the benches of $side do not build"
  mkdir "$dir/$side"
  grep '"kind":\["bench"\]' "$dir/$side.json" | grep -o '"executable":"[^"]*"' | cut -d'"' -f4 |
    xargs --no-run-if-empty cp --target-directory "$dir/$side"
  [ -n "$(ls "$dir/$side")" ] || fail "$side has no benches"
done

# On one core where that can be chosen: moving between cores costs more than many a change.
pin=()
if command -v taskset > /dev/null; then pin=(taskset --cpu-list "$(taskset --cpu-list --pid $$ | grep -o '[0-9]*$')"); fi
for ((round = 1; round <= rounds; round++)); do
  # Who begins takes turns too.
  order="A B"
  ((round % 2)) || order="B A"
  for side in $order; do
    echo "round $round of $rounds: $side" >&2
    for bench in "$dir/$side"/*; do
      CRITERION_HOME="$dir/out/$side/$round" "${pin[@]}" "$bench" --bench --quiet --noplot --sample-size 20 \
        --warm-up-time 0.3 --measurement-time "$seconds" ${filter:+"$filter"} > "$dir/log" 2>&1 ||
        { cat "$dir/log" >&2; fail "a bench of $side failed"; }
    done
  done
done

# Lines of side, bench, round and median in ns, by bench.
find "$dir/out" -path '*/new/estimates.json' 2> /dev/null | while read -r file; do
  IFS=/ read -r side round bench <<< "${file#"$dir/out/"}"
  median=$(grep -o '"median":{"confidence_interval":{[^}]*},"point_estimate":[0-9.e+-]*' "$file" | grep -o '[^:]*$')
  printf '%s\t%s\t%s\t%s\n' "$side" "${bench%/new/estimates.json}" "$round" "$median"
done | LC_ALL=C sort -t $'\t' -k 2,2 -k 3,3n | LC_ALL=C awk -F '\t' '
  function middle(list, n,   i, j, x) { # of list[1] to list[n], which it sorts
    for (i = 2; i <= n; i++)
      for (j = i; j > 1 && list[j] < list[j - 1]; j--) { x = list[j]; list[j] = list[j - 1]; list[j - 1] = x }
    return (list[int((n + 1) / 2)] + list[int(n / 2) + 1]) / 2
  }
  function time(ns) {
    return ns < 1e3 ? sprintf("%.1f ns", ns) : ns < 1e6 ? sprintf("%.2f us", ns / 1e3) : sprintf("%.2f ms", ns / 1e6)
  }
  function tell(   n, r, mid, mark) {
    for (r in a) if (r in b) ratio[++n] = b[r] / a[r]
    if (!n) { printf "%-44s only in %s\n", bench, na ? "A" : "B"; return }
    mid = middle(ratio, n)
    # Told only if every round says so.
    mark = ratio[1] > 1 && mid > 1.02 ? "  slower" : ratio[n] < 1 && mid < 0.98 ? "  faster" : ""
    printf "%-44s %10s %10s %7.3f  %.3f to %.3f%s\n", bench, time(middle(as, na)), time(middle(bs, nb)), mid, ratio[1], ratio[n], mark
  }
  NR == 1 { printf "%-44s %10s %10s %7s  %s\n", "bench", "A", "B", "B / A", "least and most over the rounds" }
  NR > 1 && $2 != bench { tell(); split("", a); split("", b); na = nb = 0 }
  { bench = $2 }
  $1 == "A" { a[$3] = as[++na] = $4 }
  $1 == "B" { b[$3] = bs[++nb] = $4 }
  END { if (NR) tell(); else { print "no bench has a name like that"; exit 2 } }'
