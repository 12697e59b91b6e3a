-- The tables, columns and indexes that users made, a row each: what one node is told by
-- `tribune schema apply` every node learns from here. Read it as you like; only changes of the
-- schema write it.
CREATE TABLE tribune_schema (
    -- 'table', 'column' or 'index'.
    kind       TEXT    NOT NULL,
    -- The table that it is, or belongs to.
    tbl        TEXT    NOT NULL,
    -- Of a column and an index: to which of the tables of that name, one dropped after the other,
    -- it belongs, from 1. Of a table: 0.
    generation INTEGER NOT NULL,
    -- The column's or index's name. Of a table: empty.
    name       TEXT    NOT NULL,
    -- Of a table a JSON object: "key" (names of columns), "strict", "without_rowid". Of a column
    -- what follows its name in CREATE TABLE. Of an index what follows the table's name.
    definition TEXT    NOT NULL DEFAULT '',
    -- Of a column: its place in the table. At one place names decide.
    place      INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (kind, tbl, generation, name)
) WITHOUT ROWID;
