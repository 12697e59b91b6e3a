-- Names of replicated tables and columns, and the numbers that stand for them on this node.
-- A name may be here before its table is: another node's schema is ahead of ours.
CREATE TABLE __tribune_tables (
    id   INTEGER NOT NULL PRIMARY KEY,
    name TEXT    NOT NULL UNIQUE
);

CREATE TABLE __tribune_columns (
    tbl  INTEGER NOT NULL,
    id   INTEGER NOT NULL,
    name TEXT    NOT NULL,
    PRIMARY KEY (tbl, id),
    UNIQUE (tbl, name)
) WITHOUT ROWID;

-- One record for each row that ever lived here: which life it is in, and who wrote its cells.
CREATE TABLE __tribune_rows (
    tbl     INTEGER NOT NULL,
    -- The row's primary key, packed so that bytes sort as keys do.
    key     BLOB    NOT NULL,
    -- The newest of the stamps that the clock holds: the only one, in most rows.
    origin  INTEGER NOT NULL,
    version INTEGER NOT NULL,
    -- When that stamp's commit was made, in microseconds since 1970; 0: not known.
    at      INTEGER NOT NULL,
    -- The life and the cells' counts and stamps: see crdt/record.rs.
    clock   BLOB    NOT NULL,
    PRIMARY KEY (tbl, key)
) WITHOUT ROWID;

-- Finds what is left of an origin's versions.
CREATE INDEX __tribune_rows_by_version ON __tribune_rows (origin, version);

-- The further stamps of rows that hold several.
CREATE TABLE __tribune_stamps (
    origin  INTEGER NOT NULL,
    version INTEGER NOT NULL,
    tbl     INTEGER NOT NULL,
    key     BLOB    NOT NULL,
    at      INTEGER NOT NULL,
    PRIMARY KEY (origin, version, tbl, key)
) WITHOUT ROWID;
