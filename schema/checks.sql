-- The health checks of hosts and instances, a row each, written by the host that runs them.
-- A row changes when the status does, not each time a check ran.
CREATE TABLE checks (
    -- The node that runs it: nodes.id.
    node_id    TEXT NOT NULL,
    -- Names the check on its node.
    id         TEXT NOT NULL,
    name       TEXT NOT NULL DEFAULT '',
    -- 'passing', 'warning' or 'critical'.
    status     TEXT NOT NULL DEFAULT 'critical',
    notes      TEXT NOT NULL DEFAULT '',
    -- What the check said when the status last changed.
    output     TEXT NOT NULL DEFAULT '',
    -- The instance it belongs to: services.id. Empty: it speaks for the whole node.
    service_id TEXT NOT NULL DEFAULT '',
    -- 'http', 'tcp', 'ttl', 'script', 'maintenance'; empty when it is not known.
    type       TEXT NOT NULL DEFAULT '',
    -- Who brought it in: 'api', 'consul' (the host's Consul agent) or 'file'.
    source     TEXT NOT NULL DEFAULT 'api',
    PRIMARY KEY (node_id, id)
);

CREATE INDEX checks_by_service ON checks (node_id, service_id);
