-- Values that belong to a row and have no place in it yet: its table or column is unknown here,
-- or SQLite refuses the row. Their clocks are in __tribune_rows like all others, so they merge
-- and are passed on like all others.
CREATE TABLE __tribune_parked (
    tbl    INTEGER NOT NULL,
    key    BLOB    NOT NULL,
    col    INTEGER NOT NULL,
    -- Any of SQLite's five kinds; no affinity.
    value,
    -- Why SQLite refused the row; NULL: this node's schema does not know the place.
    reason TEXT,
    PRIMARY KEY (tbl, key, col)
) WITHOUT ROWID;
