-- Prepared queries of Consul's API, a row each, written by any node. Where two were given one name
-- at the same time, the one with the lower id answers to it.
CREATE TABLE prepared_queries (
    -- A UUID.
    id         TEXT NOT NULL PRIMARY KEY,
    -- The name, or of a template the prefix; empty: it has only its id.
    name       TEXT NOT NULL DEFAULT '',
    -- JSON object in Consul's form, without ID and Name.
    definition TEXT NOT NULL DEFAULT '{}'
);
