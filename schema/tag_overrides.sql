-- Tags that were edited in the catalog, for instances whose registration allows it
-- (services.enable_tag_override). Any node writes them; they stand in the place of services.tags
-- until the instance is deregistered.
CREATE TABLE tag_overrides (
    -- The instance: services.node_id and services.id.
    node_id    TEXT NOT NULL,
    service_id TEXT NOT NULL,
    -- JSON array of texts.
    tags       TEXT NOT NULL DEFAULT '[]',
    PRIMARY KEY (node_id, service_id)
);
