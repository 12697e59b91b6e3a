-- The instances that run on the hosts, a row each, written by the host they run on.
CREATE TABLE services (
    -- The node it runs on: nodes.id.
    node_id             TEXT    NOT NULL,
    -- Names the instance on its node.
    id                  TEXT    NOT NULL,
    -- Names the service that this is an instance of.
    name                TEXT    NOT NULL DEFAULT '',
    -- JSON array of texts, in the order of registration.
    tags                TEXT    NOT NULL DEFAULT '[]',
    -- An IP address or a host name; empty: the node's address.
    address             TEXT    NOT NULL DEFAULT '',
    port                INTEGER NOT NULL DEFAULT 0,
    -- JSON object: key to value, both texts.
    meta                TEXT    NOT NULL DEFAULT '{}',
    -- JSON object: kind of address to {"Address": text, "Port": integer}.
    tagged_addresses    TEXT    NOT NULL DEFAULT '{}',
    -- The weight of the instance's SRV record while it passes, and while it warns.
    weight_passing      INTEGER NOT NULL DEFAULT 1,
    weight_warning      INTEGER NOT NULL DEFAULT 1,
    -- 1: whoever edits tags in the catalog wins over the registration.
    enable_tag_override INTEGER NOT NULL DEFAULT 0,
    -- Empty for a plain service; Consul's kinds of proxies otherwise.
    kind                TEXT    NOT NULL DEFAULT '',
    -- Who brought it in: 'api', 'consul' (the host's Consul agent), 'file', or 'agent' (the node itself).
    source              TEXT    NOT NULL DEFAULT 'api',
    PRIMARY KEY (node_id, id)
);

CREATE INDEX services_by_name ON services (name);
