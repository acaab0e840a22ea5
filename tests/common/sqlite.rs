//! A program that writes to a database, and one that checks what is left when it was killed.

/// Adds rows to the database of the first argument, with the journal mode of the second, each transaction
/// told once it is durable.
pub const WRITES: &str = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute('pragma journal_mode=' + sys.argv[2])
# After this, a transaction that is told is durable: `full` leaves the journal's removal to chance.
db.execute('pragma synchronous=extra')
db.execute('create table if not exists t (n integer primary key, b blob)')
n = db.execute('select coalesce(max(n), 0) from t').fetchone()[0]
while True:
    with db:
        for _ in range(5):
            n += 1
            db.execute('insert into t values (?, ?)', (n, bytes([n % 256]) * 900))
    print(n, flush=True)
";

/// Tells how many rows there are, each of a whole transaction and as it was written.
pub const CHECKS: &str = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
assert db.execute('pragma integrity_check').fetchone()[0] == 'ok'
n, most = db.execute('select count(*), coalesce(max(n), 0) from t').fetchone()
assert n == most and n % 5 == 0, (n, most)
assert all(bytes([k % 256]) * 900 == b for k, b in db.execute('select n, b from t'))
print(n)
";
