#!/usr/bin/env bash
# Writes fedtiny/wire/pb anew. With --check: says whether it is what the protos give.
# The compiler lives in an environment of its own: its protobuf is not the one that fedtiny runs on.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=build/protoc
if [[ ! -x $tools/bin/python ]]; then
    "${PYTHON:-python3}" -m venv "$tools"
    "$tools/bin/python" -m pip install -q grpcio-tools==1.76.0
fi

made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
"$tools/bin/python" -m grpc_tools.protoc -I protos --python_out="$made" --pyi_out="$made" \
    protos/fedtiny/v1/*.proto

if [[ ${1:-} == --check ]]; then
    for file in "$made"/fedtiny/v1/*; do
        cmp "$file" "fedtiny/wire/pb/${file##*/}" ||
            { echo "fedtiny/wire/pb is not what the protos give: run protos/generate.sh" >&2; exit 1; }
    done
else
    cp "$made"/fedtiny/v1/* fedtiny/wire/pb/
fi
