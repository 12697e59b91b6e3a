-- Events that were fired over the API: each node has a ring of places and overwrites its oldest.
-- Nothing is kept for ever, and a node acts on nothing that is a minute old.
CREATE TABLE events (
    -- <UUID of the node that fired it>/<place in its ring>
    place          TEXT    NOT NULL PRIMARY KEY,
    -- A UUID.
    id             TEXT    NOT NULL DEFAULT '',
    name           TEXT    NOT NULL DEFAULT '',
    payload        BLOB    NOT NULL DEFAULT x'',
    -- Regular expressions of whom it is for; empty: for everybody.
    node_filter    TEXT    NOT NULL DEFAULT '',
    service_filter TEXT    NOT NULL DEFAULT '',
    tag_filter     TEXT    NOT NULL DEFAULT '',
    -- Milliseconds since 1970.
    fired_at       INTEGER NOT NULL DEFAULT 0
);
