-- The health checks of nodes without an agent. Nobody here runs them: their status is what was
-- written last. The columns are those of checks, and what the check does.
CREATE TABLE external_checks (
    -- The node it is about: external_nodes.id.
    node_id    TEXT NOT NULL,
    -- Names the check on its node.
    id         TEXT NOT NULL,
    name       TEXT NOT NULL DEFAULT '',
    status     TEXT NOT NULL DEFAULT 'critical',
    notes      TEXT NOT NULL DEFAULT '',
    output     TEXT NOT NULL DEFAULT '',
    service_id TEXT NOT NULL DEFAULT '',
    type       TEXT NOT NULL DEFAULT '',
    source     TEXT NOT NULL DEFAULT 'api',
    -- JSON object: what to do, for whoever runs it from outside. It is shown to everybody.
    definition TEXT NOT NULL DEFAULT '{}',
    PRIMARY KEY (node_id, id)
);
