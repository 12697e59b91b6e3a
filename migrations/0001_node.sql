-- Who this node is. One row.
CREATE TABLE __tribune_node (
    one     INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    -- The node's id, 16 bytes.
    id      BLOB    NOT NULL,
    -- What it was called when it last started.
    name    TEXT    NOT NULL,
    -- The cluster's id, 16 bytes; NULL until the node belongs to one.
    cluster BLOB,
    scope   INTEGER NOT NULL,
    -- The epoch of its own writes.
    epoch   INTEGER NOT NULL,
    -- Which file this was written in: device and inode, 8 bytes each. A database that finds itself
    -- in another file was copied or restored. NULL: in memory.
    file    BLOB,
    -- Which life of the database this is: 16 random bytes, new at every start. The file tribune.life
    -- beside the database holds them, too. NULL: in memory, or never opened.
    life    BLOB,
    -- The boot of the machine that this life began in, as the kernel names it. NULL: not known.
    boot    TEXT
);

-- Every origin this node has heard of, and the number that stands for it here.
CREATE TABLE __tribune_origins (
    -- From 1 on; a number is never used twice. Other nodes number otherwise.
    ordinal INTEGER NOT NULL PRIMARY KEY,
    -- Scope, node and epoch: 26 bytes that sort as origins do.
    origin  BLOB    NOT NULL UNIQUE
);

-- What every commit moves, all of it on one page as long as there are few origins and tables:
-- * of an origin, under its ordinal: its head; all versions up to it are held;
-- * of a table, under -1 - __tribune_tables.id: how many of its rows are dead, as 8 bytes (low first),
--   and its part of the fingerprint, as 8 bytes for the lives of its rows, and 8 for the cells of each
--   column in the order of its numbers;
-- * under the least number there is: the longest life in which a row may have died.
CREATE TABLE __tribune_heads (
    id    INTEGER NOT NULL PRIMARY KEY,
    value NOT NULL
);
