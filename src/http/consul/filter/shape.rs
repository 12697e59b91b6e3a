//! What the endpoints return, as far as a filter may name it.

/// The type of a value, with what can be named inside of it.
#[derive(Debug)]
pub enum Shape {
    Text,
    Integer,
    Bool,
    Texts,
    /// Any keys; all values are alike.
    Map(&'static Shape),
    /// What is asked of a list's fields is asked of each element, until one says yes.
    List(&'static Shape),
    Object(&'static [(&'static str, Shape)]),
}

use Shape::{Bool, Integer, List, Map, Object, Text, Texts};

impl Shape {
    /// `catalog/nodes`.
    pub const NODE: Self = Object(&[
        ("ID", Text),
        ("Node", Text),
        ("Address", Text),
        ("Datacenter", Text),
        ("TaggedAddresses", Map(&Text)),
        ("Meta", Map(&Text)),
    ]);

    /// The services of `catalog/node` and `catalog/node-services`.
    pub const NODE_SERVICE: Self = Object(&[
        ("Kind", Text),
        ("ID", Text),
        ("Service", Text),
        ("Tags", Texts),
        ("Address", Text),
        ("TaggedAddresses", Map(&ADDRESS)),
        ("Meta", Map(&Text)),
        ("Port", Integer),
        ("Weights", WEIGHTS),
        ("EnableTagOverride", Bool),
        ("Proxy", PROXY),
        ("Connect", CONNECT),
    ]);

    /// `catalog/service`, and each instance behind `catalog/services`.
    pub const CATALOG_SERVICE: Self = Object(&[
        ("ID", Text),
        ("Node", Text),
        ("Address", Text),
        ("Datacenter", Text),
        ("TaggedAddresses", Map(&Text)),
        ("NodeMeta", Map(&Text)),
        ("ServiceKind", Text),
        ("ServiceID", Text),
        ("ServiceName", Text),
        ("ServiceTags", Texts),
        ("ServiceAddress", Text),
        ("ServiceTaggedAddresses", Map(&ADDRESS)),
        ("ServiceWeights", WEIGHTS),
        ("ServiceMeta", Map(&Text)),
        ("ServicePort", Integer),
        ("ServiceEnableTagOverride", Bool),
        ("ServiceProxy", PROXY),
        ("ServiceConnect", CONNECT),
    ]);

    /// `health/checks`, `health/node`, `health/state`, `agent/checks`.
    pub const CHECK: Self = Object(&[
        ("Node", Text),
        ("CheckID", Text),
        ("Name", Text),
        ("Status", Text),
        ("Notes", Text),
        ("Output", Text),
        ("ServiceID", Text),
        ("ServiceName", Text),
        ("ServiceTags", Texts),
        ("Type", Text),
    ]);

    /// `health/service`.
    pub const SERVICE_ENTRY: Self = Object(&[
        ("Node", Self::NODE),
        ("Service", Self::NODE_SERVICE),
        ("Checks", List(&Self::CHECK)),
    ]);

    /// `agent/services`.
    pub const AGENT_SERVICE: Self = Object(&[
        ("Kind", Text),
        ("ID", Text),
        ("Service", Text),
        ("Tags", Texts),
        ("Meta", Map(&Text)),
        ("Port", Integer),
        ("Address", Text),
        ("TaggedAddresses", Map(&ADDRESS)),
        ("Weights", WEIGHTS),
        ("EnableTagOverride", Bool),
        ("ContentHash", Text),
        ("Proxy", PROXY),
        ("Connect", CONNECT),
    ]);

    /// `agent/members`, which newer versions filter.
    pub const MEMBER: Self = Object(&[
        ("Name", Text),
        ("Addr", Text),
        ("Port", Integer),
        ("Tags", Map(&Text)),
        ("Status", Integer),
    ]);
}

const ADDRESS: Shape = Object(&[("Address", Text), ("Port", Integer)]);
const WEIGHTS: Shape = Object(&[("Passing", Integer), ("Warning", Integer)]);
/// There is no mesh: all of these are empty, and an expression may still name them.
const PROXY: Shape = Object(&[
    ("DestinationServiceName", Text),
    ("DestinationServiceID", Text),
    ("LocalServiceAddress", Text),
    ("LocalServicePort", Integer),
    ("Mode", Text),
    ("MeshGateway", Object(&[("Mode", Text)])),
    ("Expose", Object(&[("Checks", Bool)])),
]);
const CONNECT: Shape = Object(&[("Native", Bool)]);
