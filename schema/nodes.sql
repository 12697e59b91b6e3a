-- The hosts of the fleet, a row each, written by the host itself.
CREATE TABLE nodes (
    -- The node's id (a UUID). An external node, which runs no agent of its own, has
    -- '<id of the node that registered it>/<its name>'.
    id               TEXT NOT NULL PRIMARY KEY,
    -- What DNS and Consul's API call the node.
    name             TEXT NOT NULL DEFAULT '',
    -- An IP address or a host name, without a port.
    address          TEXT NOT NULL DEFAULT '',
    datacenter       TEXT NOT NULL DEFAULT '',
    -- JSON object: kind of address (lan, wan, lan_ipv4, ...) to address.
    tagged_addresses TEXT NOT NULL DEFAULT '{}',
    -- JSON object: key to value, both texts.
    meta             TEXT NOT NULL DEFAULT '{}',
    -- Where the node listens for gossip, as address:port. Empty for an external node.
    gossip           TEXT NOT NULL DEFAULT '',
    -- The version of Tribune the node runs. Empty for an external node.
    version          TEXT NOT NULL DEFAULT ''
);
