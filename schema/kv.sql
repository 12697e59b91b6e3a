-- Keys and values, written by any node; concurrent writes of one key merge.
CREATE TABLE kv (
    key   TEXT    NOT NULL PRIMARY KEY,
    value BLOB    NOT NULL DEFAULT x'',
    -- A number that clients may attach to a key; Tribune does not read it.
    flags INTEGER NOT NULL DEFAULT 0
);
