-- How far tombstones of deleted rows were dropped, of each origin. Nobody who holds less of it may
-- catch up from here but by taking all rows.
CREATE TABLE __tribune_floor (
    -- Scope, node and epoch: 26 bytes.
    origin  BLOB    NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL,
    -- How far the log of versions was looked through for them: a version, and a part of it.
    seen    INTEGER NOT NULL DEFAULT 0,
    part    INTEGER NOT NULL DEFAULT -1
) WITHOUT ROWID;

-- Members that were not asked when tombstones were dropped, and up to which epoch of theirs.
CREATE TABLE __tribune_forgotten (
    node  BLOB    NOT NULL PRIMARY KEY,
    epoch INTEGER NOT NULL
) WITHOUT ROWID;

-- Members that were met, and the latest epoch of theirs.
CREATE TABLE __tribune_members (
    node  BLOB    NOT NULL PRIMARY KEY,
    epoch INTEGER NOT NULL
) WITHOUT ROWID;

-- One row.
CREATE TABLE __tribune_collection (
    one          INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    -- The longest life of a row whose tombstone was dropped.
    length       INTEGER NOT NULL,
    -- The origin of this node that may speak; NULL: none yet.
    settled      BLOB,
    -- 1: this node is taking over all rows of another.
    is_rejoining INTEGER NOT NULL
);
INSERT INTO __tribune_collection (one, length, settled, is_rejoining) VALUES (1, 0, NULL, 0);

-- While this node takes over all rows of another: those that the other has told of.
CREATE TABLE __tribune_confirmed (
    tbl INTEGER NOT NULL,
    key BLOB    NOT NULL,
    PRIMARY KEY (tbl, key)
) WITHOUT ROWID;
