//! Bodies of `catalog/register` and `catalog/deregister`: as far as their faults go, for now.

use super::fields::{Fields, decode};
use crate::http::error::Fault;

/// Finds what Consul would refuse in a registration.
pub fn check_registration(body: &[u8], datacenter: &str) -> Result<(), Fault> {
    let value = decode(body)?;
    let fields = Fields::of_body(&value)?;
    check_node(&fields, datacenter)?;
    if fields.text("Address")?.is_empty() && !fields.boolean("SkipNodeUpdate")? {
        return Err(Fault::internal("Must provide address if SkipNodeUpdate is not set"));
    }
    Ok(())
}

/// Finds what Consul would refuse in a deregistration.
pub fn check_deregistration(body: &[u8], datacenter: &str) -> Result<(), Fault> {
    let value = decode(body)?;
    check_node(&Fields::of_body(&value)?, datacenter)
}

fn check_node(fields: &Fields<'_>, datacenter: &str) -> Result<(), Fault> {
    let asked = fields.text("Datacenter")?;
    if !asked.is_empty() && asked != datacenter {
        return Err(Fault::internal("No path to datacenter"));
    }
    if fields.text("Node")?.is_empty() {
        return Err(Fault::internal("Must provide node"));
    }
    Ok(())
}
