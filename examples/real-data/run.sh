#!/usr/bin/env bash
# The history of a git repository through every door: HTTP in, a range and SSE out, and two
# consumers of the library. A checker compares what was sent with what came back.
#
#   examples/real-data/run.sh [path of a git repository]
#
# Without a path it makes a history of its own. PROFILE=release builds with optimisation. Needs
# git, curl and Python 3; works in a temporary folder and removes it.
set -euo pipefail
export LC_ALL=C
# What a caller's git has set (in a hook, for example) must not choose the repository here.
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
repository=${1:-}
profile=${PROFILE:-dev}

for tool in git curl python3; do
    command -v "$tool" >/dev/null || { echo "run.sh needs $tool" >&2; exit 1; }
done

work=$(mktemp -d)
up=
curl=
cleanup() {
    for process in $curl $up; do kill -KILL "$process" 2>/dev/null || true; done
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

fail() {
    echo "run.sh: $*" >&2
    [[ ! -s $work/up.log ]] || { echo "the bus said:" >&2; tail -n 20 "$work/up.log" >&2; }
    exit 1
}

# say STEP FIGURES…
say() { printf '%-8s %s\n' "$1" "${*:2}"; }

# A point in time, and what happened since then: seconds and events a second.
now() { date +%s%N; }
since() { awk -v ns=$(($(now) - $1)) -v n="$2" 'BEGIN { s = ns / 1e9; printf "%.2f s, %d events/s", s, n / s }'; }

# --- build -----------------------------------------------------------------------------------
(cd "$root" && cargo build --quiet --profile "$profile" -p trunkline-cli -p trunkline-examples \
    --bin trunkline --bin history --bin handle_history)
folder=$profile
[[ $profile != dev ]] || folder=debug
bin=${CARGO_TARGET_DIR:-$root/target}/$folder
say build "profile $profile"

# --- a history -------------------------------------------------------------------------------
if [[ -z $repository ]]; then
    repository=$work/generated
    git init --quiet --bare "$repository"
    git -C "$repository" symbolic-ref HEAD refs/heads/main
    python3 "$here/generate.py" 12000 400 7 | git -C "$repository" fast-import --quiet --done
fi
begun=$(now)
"$bin/history" "$repository" >"$work/sent.ndjson"
events=$(wc -l <"$work/sent.ndjson")
bytes=$(wc -c <"$work/sent.ndjson")
((events > 1)) || fail "$repository has $events commits; at least two are needed"
say history "$events events, $bytes bytes, $(since "$begun" "$events")"

# --- a bus -----------------------------------------------------------------------------------
# Room for all of it: a bus in memory keeps a million events and 256 MiB unless told otherwise.
room="memory:?max_events=$((1000000 + events))&max_bytes=$(((256 << 20) + 4 * bytes))"
"$bin/trunkline" up --url "$room" --listen 127.0.0.1:0 --json >"$work/up.json" 2>"$work/up.log" &
up=$!
for _ in $(seq 300); do
    [[ ! -s $work/up.json ]] || break
    kill -0 "$up" 2>/dev/null || fail "\`trunkline up\` ended before it listened"
    sleep 0.05
done
url=$(python3 -c 'import json, sys; print(json.loads(sys.stdin.readline())["listening"])' <"$work/up.json") ||
    fail "\`trunkline up\` did not say where it listens"
say up "listening"

# --- in: POST --------------------------------------------------------------------------------
mkdir "$work/chunks"
awk -v folder="$work/chunks" '
    count == 0 || count == 5000 || size + length + 1 > 8388608 {
        close(file); file = sprintf("%s/%06d", folder, chunk++); count = size = 0
    }
    { print > file; count++; size += length + 1 }' "$work/sent.ndjson"
begun=$(now)
chunks=0
for chunk in "$work"/chunks/*; do
    status=$(curl --silent --show-error --max-time 60 --output "$work/answer.json" --write-out '%{http_code}' \
        --header 'content-type: application/x-ndjson' --data-binary "@$chunk" "$url/v1/events")
    [[ $status == 200 ]] || fail "POST of $(basename "$chunk") gave $status: $(head -c 500 "$work/answer.json")"
    chunks=$((chunks + 1))
done
say publish "$events events in $chunks requests, $bytes bytes, $(since "$begun" "$events")"

# --- out: a range ----------------------------------------------------------------------------
begun=$(now)
curl --silent --show-error --fail-with-body --max-time 120 --header 'accept: application/x-ndjson' \
    "$url/v1/events?filter=git.commit&from=first" >"$work/read.ndjson" || fail "$(head -c 500 "$work/read.ndjson")"
say range "$(wc -l <"$work/read.ndjson") events, $(wc -c <"$work/read.ndjson") bytes, $(since "$begun" "$events")"

# --- out: SSE, cut in the middle and resumed -------------------------------------------------
# follow COUNT [CURL OPTIONS…]: curl would go on until the next event, so it is stopped when the
# reader has enough.
mkfifo "$work/sse"
follow() {
    local count=$1 taken=0
    shift
    curl --silent --no-buffer --max-time 120 --header 'accept: text/event-stream' "$@" \
        "$url/v1/events?filter=git.commit&from=first&follow=true" >"$work/sse" &
    curl=$!
    python3 "$here/check.py" take "$count" <"$work/sse" >>"$work/followed.log" || taken=$?
    kill "$curl" 2>/dev/null || true
    wait "$curl" 2>/dev/null || true
    curl=
    return "$taken"
}
half=$((events / 2))
begun=$(now)
follow "$half" || fail "SSE from the first event"
last=$(tail -n 1 "$work/followed.log" | cut -f 1)
follow $((events - half)) --header "last-event-id: $last" || fail "SSE after $last"
say sse "$(wc -l <"$work/followed.log") events, resumed after $last, $(since "$begun" "$events")"

# --- the library -----------------------------------------------------------------------------
begun=$(now)
"$bin/handle_history" <"$work/sent.ndjson" >"$work/handled.json" || fail "handle_history"
say library "$(cat "$work/handled.json"), $(since "$begun" "$events")"

# --- compare, stop ---------------------------------------------------------------------------
checked=$(python3 "$here/check.py" compare "$work/sent.ndjson" "$work/read.ndjson" "$work/followed.log" "$work/handled.json") ||
    fail "what came back is not what was sent"
say check "$checked"

kill -TERM "$up"
code=0
wait "$up" || code=$?
up=
((code == 0)) || fail "\`trunkline up\` ended with $code after SIGTERM"
say stop "exit code 0"
