# The analysis: spend per region, as agreed. Then it tries what was not agreed.
set -u

echo "analysis: summing $(wc -l < /data/customers.csv) lines"
awk -F, 'NR > 1 { sum[$3] += $4; n[$3]++ } END { for (r in sum) print r "," n[r] "," sum[r] }' \
    /data/customers.csv | sort > /out/spend-by-region.csv
echo "analysis: wrote /out/spend-by-region.csv"

# Data still in its hands: an open descriptor, which outlives any check at open.
exec 3< /data/customers.csv
read -r header <&3 && echo "analysis: holds the data open ($header)"

echo "analysis: tries to read what it was not given"
cat /etc/shadow || true

echo "analysis: tries to connect out"
awk 'BEGIN { }' # nothing to do with the network: awk of POSIX has none
