#!/usr/bin/env bash
# The instruction-count gate: counts the instructions of every hot path under callgrind and compares them with
# benches/instructions.txt; with --accept they become the new baseline. Needs valgrind. See benches/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v valgrind > /dev/null || {
  echo "benches/instructions.sh: valgrind is missing: install the package valgrind" >&2
  exit 2
}
# Without --package: built as part of the workspace, as everything else is, so that nothing is built twice.
exec cargo run --release --quiet --bin millrace-instructions -- "$@"
