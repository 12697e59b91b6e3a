-- What stands in the catalog without an agent of its own: a row each, written by any node on behalf
-- of whoever registers it over Consul's catalog API. Concurrent writes of one row merge.
CREATE TABLE external_nodes (
    -- The node's name in lower case: names are compared without case.
    id               TEXT NOT NULL PRIMARY KEY,
    -- The name as it was given.
    name             TEXT NOT NULL DEFAULT '',
    -- An IP address or a host name, without a port.
    address          TEXT NOT NULL DEFAULT '',
    datacenter       TEXT NOT NULL DEFAULT '',
    -- JSON object: kind of address (lan, wan, lan_ipv4, ...) to address.
    tagged_addresses TEXT NOT NULL DEFAULT '{}',
    -- JSON object: key to value, both texts.
    meta             TEXT NOT NULL DEFAULT '{}',
    -- The UUID that whoever registered it gave it; often empty.
    external_id      TEXT NOT NULL DEFAULT ''
);
