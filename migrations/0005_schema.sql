-- What tribune_schema says of each table and column, and what of it this database has. Only names
-- that were ever there stand here; a table that no schema change made is not among them.
CREATE TABLE __tribune_names (
    -- Of a table its name; of a column the name under which its table travels.
    tbl    TEXT    NOT NULL,
    -- The column; empty: the table itself.
    col    TEXT    NOT NULL,
    -- The life of its row in tribune_schema: odd, it is there; even, it was dropped.
    length INTEGER NOT NULL,
    -- Which generation of the name SQLite has here, from 1; 0: none.
    held   INTEGER NOT NULL,
    PRIMARY KEY (tbl, col)
) WITHOUT ROWID;

-- What tribune_schema describes and this node cannot carry out.
CREATE TABLE __tribune_asides (
    kind   TEXT NOT NULL,
    tbl    TEXT NOT NULL,
    name   TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (kind, tbl, name)
) WITHOUT ROWID;
