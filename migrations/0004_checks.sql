-- What this node's checks do. It may hold secrets, so it never leaves the node.
CREATE TABLE __tribune_checks (
    -- checks.id
    id         TEXT NOT NULL PRIMARY KEY,
    -- The instance it belongs to; empty: the whole node.
    service_id TEXT NOT NULL DEFAULT '',
    -- JSON.
    definition TEXT NOT NULL
) WITHOUT ROWID;
