#!/bin/sh
# The clean room, from nothing to a verified log: builds, makes the data, runs, verifies.
#
# With SANDBOXCTL set to a built program, nothing is built. CLEAN_ROOM_DIR moves what is written. Arguments
# are passed on to `sandboxctl run`: `--backend microvm` has it in a virtual machine.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${SANDBOXCTL:-}" ]; then
    echo "== building sandboxctl (some minutes, the first time)"
    (cd "$here" && cargo build -p sandboxctl -p casemate-guest-agent)
    target=$(cd "$here" && cargo metadata --format-version 1 --no-deps |
        sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    SANDBOXCTL=$target/debug/sandboxctl
fi
room=${CLEAN_ROOM_DIR:-$here/run}

echo "== the data owner seals 200,000 customers into a vault"
rm -rf "$room"
mkdir -p "$room/out"
cp -R "$here/policy.toml" "$here/reference.json" "$here/app" "$room/"
"$SANDBOXCTL" vault create "$room/customers.vault" --key-file "$room/customers.key"
awk 'BEGIN {
    seed = 42; split("north south east west centre", region, " ")
    print "id,name,region,spend"
    for (i = 1; i <= 200000; i++) {
        seed = (seed * 1103 + 12345) % 1048576
        printf "%d,customer-%06d,%s,%d\n", i, i, region[1 + seed % 5], seed % 9973
    }
}' | "$SANDBOXCTL" vault put "$room/customers.vault" customers.csv --key-file "$room/customers.key"

echo
echo "== the analysis runs under the policy"
status=0
"$SANDBOXCTL" run "$room/policy.toml" --dangerously-accept-simulated --log "$room/log" \
    --receipt "$room/receipt.json" "$@" || status=$?

echo
echo "== the result that it was allowed to write"
cat "$room/out/spend-by-region.csv"

echo
echo "== the log of the run"
"$SANDBOXCTL" audit verify "$room/log"

echo
echo "== the receipt, as somebody sees it who was not there"
"$SANDBOXCTL" receipt verify "$room/receipt.json" --policy "$room/policy.toml" \
    --reference "$room/reference.json" --dangerously-accept-simulated > "$room/proven"
head -n 1 "$room/proven"
if [ "$status" -ne 122 ]; then
    echo "expected the policy to stop the analysis (exit code 122), got $status" >&2
    exit 1
fi
echo "the policy stopped the analysis, and the log proves it"
