#!/usr/bin/env bash
# An agent in another language: one session of it. It counts the words of every .txt file of a folder into out/.
#
#   flows/shell_agent.sh FOLDER CHAIN          # ends with 0 when all is done, with 10 when another session is needed
#   until flows/shell_agent.sh FOLDER CHAIN; do [ $? = 10 ] || break; done
#
# What each session may use: $TOKENS, a word being one of them. Whatever kills it, the next session goes on after the last
# file whose checkpoint was saved.
set -euo pipefail

folder=$1 chain=$2
files=("$folder"/*.txt)
[ -e "${files[0]}" ] || { echo "$folder has no .txt file" >&2; exit 2; }

# The session's word goes where the other commands look for it; the cursor says how far the sessions before have come.
started=$(perpetual session start "$chain" --task "Count the words of $folder" --tokens "${TOKENS:-1000}" --json)
PERPETUAL_SESSION=$(sed -n 's/^  "session": "\(.*\)",$/\1/p' <<< "$started")
cursor=$(sed -n 's/^  "cursor": \([0-9]*\),$/\1/p' <<< "$started")
export PERPETUAL_SESSION

# A signal is heard between two files.
asked=
trap 'asked=1' TERM INT

code=0 used=0
mkdir -p "$folder/out"
for ((n = ${cursor:-0}; n < ${#files[@]} && code == 0; n++)); do
    out=$folder/out/$(basename "${files[n]}")
    words=$(wc -w < "${files[n]}")
    # Whole, and under the same name: the file is counted again if this process dies before its checkpoint.
    echo "$((words))" > "$out.part"
    mv "$out.part" "$out"
    used=$((used + words))
    said=(--progress "$((n + 1))/${#files[@]}" --cursor "$((n + 1))" --tokens "$used")
    if ((n + 1 < ${#files[@]})); then
        said+=(--next-action "count ${files[n + 1]}")
    else
        said+=(--done)
    fi
    # 10: the budget says wrap now.
    perpetual session checkpoint "${said[@]}" > /dev/null || code=$?
    [ -z "$asked" ] || code=10
done
[ "$code" = 0 ] || [ "$code" = 10 ] || exit "$code"

perpetual session wrap
((n == ${#files[@]})) || exit 10
