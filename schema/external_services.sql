-- The instances on nodes without an agent. The columns are those of services.
CREATE TABLE external_services (
    -- The node it is on: external_nodes.id.
    node_id             TEXT    NOT NULL,
    -- Names the instance on its node.
    id                  TEXT    NOT NULL,
    name                TEXT    NOT NULL DEFAULT '',
    tags                TEXT    NOT NULL DEFAULT '[]',
    address             TEXT    NOT NULL DEFAULT '',
    port                INTEGER NOT NULL DEFAULT 0,
    meta                TEXT    NOT NULL DEFAULT '{}',
    tagged_addresses    TEXT    NOT NULL DEFAULT '{}',
    weight_passing      INTEGER NOT NULL DEFAULT 1,
    weight_warning      INTEGER NOT NULL DEFAULT 1,
    enable_tag_override INTEGER NOT NULL DEFAULT 0,
    kind                TEXT    NOT NULL DEFAULT '',
    source              TEXT    NOT NULL DEFAULT 'api',
    PRIMARY KEY (node_id, id)
);

CREATE INDEX external_services_by_name ON external_services (name);
