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
    tbl   INTEGER NOT NULL,
    -- The row's primary key, packed so that bytes sort as keys do.
    key   BLOB    NOT NULL,
    -- The life, and the cells' counts and stamps: see crdt/record.rs.
    clock BLOB    NOT NULL,
    PRIMARY KEY (tbl, key)
) WITHOUT ROWID;

-- Which rows each version wrote: how what is left of an origin's versions is found. A row that was
-- overwritten since is still named until it is swept away (see store/log.rs).
CREATE TABLE __tribune_log (
    origin  INTEGER NOT NULL,
    version INTEGER NOT NULL,
    -- From 0; a version that wrote many rows has several parts.
    part    INTEGER NOT NULL,
    -- When the commit was made, in microseconds since 1970; 0: not known.
    at      INTEGER NOT NULL,
    -- Tables and keys: see store/log.rs.
    rows    BLOB    NOT NULL,
    PRIMARY KEY (origin, version, part)
) WITHOUT ROWID;
