# SPDX-License-Identifier: Apache-2.0
# What the examples share. Sourced; needs a running lab (`cilium lab up --nodes 3`).
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH="$ROOT/.venv/bin:$PATH"
SERVER="$ROOT/examples/01-secure-api/server.py"
CLIENT="$ROOT/examples/01-secure-api/client.py"

# show COMMAND...: print a command as one would type it, and run it.
show() {
	printf '$ %s\n' "$*"
	"$@"
}

# address NAMESPACE/POD 4|6: an address of a pod.
address() {
	local column=4
	[[ $2 == 6 ]] && column=5
	cilium lab pod list | awk -v pod="$1" -v column="$column" \
		'$1 "/" $2 == pod { sub(",", "", $column); print $column }'
}

# reaches NAMESPACE/POD KIND:PORT:ADDRESS: whether the pod gets an answer.
reaches() {
	[[ $(cilium lab exec "$1" -- python3 "$CLIENT" "it=$2") == *"says hello"* ]]
}

# answers EXPECTED POD PROGRAM ARGUMENT...: what a program of the folder prints in a pod's network
# begins like that; tried for up to ten seconds.
answers() {
	local expected=$1 pod=$2 answer
	shift 2
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		answer=$(cilium lab exec "$pod" -- "$ROOT/.venv/bin/python" "$@" 2>/dev/null) || true
		if [[ $answer == "$expected"* ]]; then
			printf '  %-90s %s\n' "$pod: $*" "$answer"
			return
		fi
		sleep 1
	done
	printf '  %-90s %s, but should be %s\n' "$pod: $*" "$answer" "$expected"
	exit 1
}

# expect yes|no NAMESPACE/POD KIND:PORT:ADDRESS WHAT: try for up to five seconds until it is so.
expect() {
	local wanted=$1 pod=$2 target=$3 what=$4 answer
	for _ in 1 2 3 4 5; do
		answer=no
		if reaches "$pod" "$target"; then answer=yes; fi
		if [[ $answer == "$wanted" ]]; then
			printf '  %-55s %s\n' "$what" "$answer"
			return
		fi
	done
	printf '  %-55s %s, but should be %s\n' "$what" "$answer" "$wanted"
	exit 1
}
