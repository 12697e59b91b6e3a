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
    file    BLOB
);

-- Every origin this node has heard of, and how far it holds its versions.
CREATE TABLE __tribune_origins (
    -- Stands for the origin in the other tables of this node. Other nodes number otherwise.
    ordinal INTEGER NOT NULL PRIMARY KEY,
    -- Scope, node and epoch: 22 bytes that sort as origins do.
    origin  BLOB    NOT NULL UNIQUE,
    -- All versions up to this one are held. It moves in the transaction that writes their rows.
    head    INTEGER NOT NULL
);
