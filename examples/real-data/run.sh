#!/usr/bin/env bash
# The history of a git repository through every door of one bus: in by the command line and by HTTP,
# out by processes that attach and handle, one of which is killed, by the command line, as an HTTP
# range and as SSE; once more inside one process, and once more over a directory and over a NATS server
# that are killed twice. A checker compares what was sent with what came back.
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
members=()
cleanup() {
    for process in $curl "${members[@]}" $up; do kill -KILL "$process" 2>/dev/null || true; done
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

fail() {
    echo "run.sh: $*" >&2
    for log in "$work"/*.log "$work"/members/*.log; do
        [[ ! -s $log ]] || { echo "$(basename "$log"):" >&2; tail -n 20 "$log" >&2; }
    done
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
# Every command below finds the bus by this.
export TRUNKLINE_URL=$url
trunkline() { "$bin/trunkline" "$@"; }
say up "listening"

# --- two consumers, of two processes each ------------------------------------------------------
mkdir "$work/members"

# attach CONSUMER MEMBER [OPTIONS…]: starts a process and waits until it takes part. Its id is then
# the last of $members.
attach() {
    local file=$work/members/$1.$2
    "$bin/handle_history" --url "$url" --consumer "$1" --member "$2" --expect "$events" \
        --out "$file.ndjson" "${@:3}" >"$file.json" 2>"$file.log" &
    members+=($!)
    until [[ -s $file.json ]]; do
        kill -0 "${members[-1]}" 2>/dev/null || fail "member $2 of $1 ended before it was ready"
        sleep 0.02
    done
}

# They are there before the first event, so that both of each share what comes.
for consumer in authors sizes; do
    for member in one two; do attach "$consumer" "$member"; done
done
say attach "${#members[@]} processes, 2 for each of 2 consumers"

# --- in: HTTP for the first, the command line for the rest -------------------------------------
# One request takes 10 000 events and 8 MiB unless the bus is told otherwise.
few=$((events < 2000 ? events / 2 : 1000))
awk -v few="$few" '{ size += length + 1 } NR > 1 && size > 4194304 || NR > few { exit } { print }' \
    "$work/sent.ndjson" >"$work/few.ndjson"
few=$(wc -l <"$work/few.ndjson")
begun=$(now)
status=$(curl --silent --show-error --max-time 60 --output "$work/answer.json" --write-out '%{http_code}' \
    --header 'content-type: application/x-ndjson' --data-binary "@$work/few.ndjson" "$url/v1/events")
[[ $status == 200 ]] || fail "POST gave $status: $(head -c 500 "$work/answer.json")"
say post "$few events in one request, $(since "$begun" "$few")"

# As a pipe, where `git log` sets the pace (see the step `history`), and then from a file, where
# the bus does.
half=$(((events + few) / 2))
begun=$(now)
"$bin/history" "$repository" | sed -n "$((few + 1)),${half}p" | trunkline pub - --json >"$work/piped.json" ||
    fail "\`history | trunkline pub -\`"
say pipe "$((half - few)) events, $(since "$begun" $((half - few)))"

tail -n "+$((half + 1))" "$work/sent.ndjson" >"$work/rest.ndjson"
rest=$((events - half))
begun=$(now)
trunkline pub --file "$work/rest.ndjson" --json >"$work/filed.json" || fail "\`trunkline pub --file\`"
say pub "$rest events while 4 processes handle them, $(since "$begun" "$rest")"
for process in "${members[@]}"; do
    wait "$process" || fail "a member failed"
done
members=()
say handle "2 × $rest events, until the last is acknowledged and all 4 processes are gone, $(since "$begun" $((2 * rest)))"

# --- a third consumer, one of whose processes is killed ---------------------------------------
# The first hangs in its handlers, with events written down and not acknowledged, so that the kill
# comes in the middle however fast the machine is. The second takes over when the leases end.
hang_after=$((events < 4000 ? events / 4 : 1000))
begun=$(now)
attach survivors killed --ack-wait-ms 2000 --hang-after "$hang_after"
killed=${members[0]}
until (($(wc -l <"$work/members/survivors.killed.ndjson") > hang_after)); do
    kill -0 "$killed" 2>/dev/null || fail "the member to be killed ended by itself"
    sleep 0.02
done
attach survivors left --ack-wait-ms 2000
# The shell would tell of the kill, so it is waited for in silence.
{ kill -KILL "$killed"; wait "$killed"; } 2>/dev/null || true
wait "${members[1]}" || fail "the member that was left failed"
members=()
say "kill -9" "$events events, one of two processes killed after $hang_after, $(since "$begun" "$events")"

# --- what the command line tells of it --------------------------------------------------------
trunkline streams list --json >"$work/streams.json" || fail "\`trunkline streams list\`"
trunkline consumers list --json >"$work/consumers.json" || fail "\`trunkline consumers list\`"

# --- out: the command line --------------------------------------------------------------------
begun=$(now)
trunkline replay --from first --json >"$work/replayed.ndjson" || fail "\`trunkline replay\`"
say replay "$(wc -l <"$work/replayed.ndjson") events, $(wc -c <"$work/replayed.ndjson") bytes, $(since "$begun" "$events")"

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

# --- a directory and NATS, killed in the middle -------------------------------------------------
for engine in file nats; do
    told=$(python3 "$here/kills.py" "$engine" "$bin" "$work/sent.ndjson") || fail "kills.py $engine"
    say "$engine" "$told"
done

# --- compare, stop ---------------------------------------------------------------------------
checked=$(python3 "$here/check.py" compare "$work") || fail "what came back is not what was sent"
say check "$checked"

kill -TERM "$up"
code=0
wait "$up" || code=$?
up=
((code == 0)) || fail "\`trunkline up\` ended with $code after SIGTERM"
say stop "exit code 0"
