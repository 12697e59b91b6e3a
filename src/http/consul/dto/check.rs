//! Checks as applications send them: alone, or inside a service's registration.

use std::collections::BTreeMap;
use std::time::Duration;

use super::fields::Fields;
use crate::catalog::model::{Check, Source, Status};
use crate::catalog::{CheckDefinition, CheckKind, CheckRegistration};
use crate::http::error::Fault;
use crate::types::duration::from_nanos;

/// Checks that ask to run more often run this often.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// How long a check may take that does not say.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
const SCRIPT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// An instance is not removed sooner than this after it became critical.
const DEREGISTER_AFTER_MIN: Duration = Duration::from_secs(60);
/// The longest output that is kept of a check.
pub const OUTPUT_BYTES_MAX: usize = 4096;

/// A check as it was sent. Durations are in nanoseconds, 0 when they are absent.
pub struct RawCheck {
    id: String,
    pub name: String,
    status: String,
    notes: String,
    args: Vec<String>,
    http: String,
    method: String,
    headers: BTreeMap<String, Vec<String>>,
    body: String,
    tls_skip_verify: bool,
    tcp: String,
    ttl: i64,
    interval: i64,
    timeout: i64,
    deregister_after: i64,
    output_bytes_max: i64,
    success_before_passing: i64,
    failures_before_critical: i64,
    /// A kind of check that Consul knows and this node does not run.
    foreign: Option<&'static str>,
}

impl RawCheck {
    pub fn read(fields: &Fields<'_>) -> Result<Self, Fault> {
        let id = fields.text("CheckID")?;
        let args = fields.texts("Args")?;
        Ok(Self {
            id: if id.is_empty() { fields.text("ID")? } else { id },
            name: fields.text("Name")?,
            status: fields.text("Status")?,
            notes: fields.text("Notes")?,
            args: if args.is_empty() { fields.texts("ScriptArgs")? } else { args },
            http: fields.text("HTTP")?,
            method: fields.text("Method")?,
            headers: fields.texts_map("Header")?,
            body: fields.text("Body")?,
            tls_skip_verify: fields.boolean("TLSSkipVerify")?,
            tcp: fields.text("TCP")?,
            ttl: fields.duration("TTL")?,
            interval: fields.duration("Interval")?,
            timeout: fields.duration("Timeout")?,
            deregister_after: fields.duration("DeregisterCriticalServiceAfter")?,
            output_bytes_max: fields.integer("OutputMaxSize")?,
            success_before_passing: fields.integer("SuccessBeforePassing")?,
            failures_before_critical: fields.integer("FailuresBeforeCritical")?,
            foreign: foreign_kind(fields)?,
        })
    }

    pub fn validate(&self, script_checks: bool) -> Result<(), Fault> {
        let invalid = |reason: &str| Err(Fault::bad_request(format!("Invalid check: {reason}")));
        let by_interval = !self.args.is_empty() || !self.http.is_empty() || !self.tcp.is_empty();
        if self.interval > 0 && self.ttl > 0 {
            return invalid("Interval and TTL cannot both be specified");
        }
        if let Some(kind) = self.foreign {
            return invalid(&format!("{kind} checks are not run here; use HTTP, TCP or TTL"));
        }
        if by_interval && self.interval <= 0 {
            return invalid("Interval must be > 0 for Script, HTTP, or TCP checks");
        }
        if !by_interval && self.ttl <= 0 {
            return invalid("TTL must be > 0 for TTL checks");
        }
        if self.output_bytes_max < 0 {
            return invalid("MaxOutputMaxSize must be positive");
        }
        if self.is_script() && !script_checks {
            return Err(Fault::internal(
                "Scripts are disabled on this agent from remote calls; to take them from \
                 everybody who reaches this port, set checks.enable_script_checks",
            ));
        }
        Ok(())
    }

    pub fn validate_status(&self, refusal: &str) -> Result<Status, Fault> {
        match self.status.as_str() {
            "" => Ok(Status::Critical),
            word => Status::parse(word).ok_or_else(|| Fault::bad_request(refusal)),
        }
    }

    /// Makes the command's part of a check that [`RawCheck::validate`] accepted.
    pub fn registration(
        self,
        default_id: String,
        default_name: String,
        service_id: String,
        bad_status: &str,
    ) -> Result<CheckRegistration, Fault> {
        let status = self.validate_status(bad_status)?;
        let definition = CheckDefinition {
            deregister_after: (self.deregister_after > 0)
                .then(|| from_nanos(self.deregister_after).max(DEREGISTER_AFTER_MIN)),
            success_before_passing: at_least_one(self.success_before_passing),
            failures_before_critical: at_least_one(self.failures_before_critical),
            output_bytes_max: output_bytes(self.output_bytes_max),
            kind: self.kind(),
        };
        let check = Check {
            id: if self.id.is_empty() { default_id } else { self.id },
            name: if self.name.is_empty() { default_name } else { self.name },
            status,
            notes: self.notes,
            output: String::new(),
            service_id,
            kind: definition.kind.as_str().to_owned(),
            source: Source::Api,
            definition: String::new(),
        };
        Ok(CheckRegistration { check, definition })
    }

    fn is_script(&self) -> bool {
        !self.args.is_empty() && self.http.is_empty() && self.tcp.is_empty()
    }

    /// HTTP wins over TCP, and both over the others.
    fn kind(&self) -> CheckKind {
        let interval = from_nanos(self.interval).max(INTERVAL_MIN);
        let timeout = match (self.timeout > 0, self.is_script()) {
            (true, _) => from_nanos(self.timeout),
            (false, true) => SCRIPT_TIMEOUT_DEFAULT,
            (false, false) => TIMEOUT_DEFAULT,
        };
        if !self.http.is_empty() {
            let method = if self.method.is_empty() { "GET" } else { self.method.as_str() };
            CheckKind::Http {
                url: self.http.clone(),
                method: method.to_owned(),
                headers: self.headers.clone(),
                body: self.body.clone(),
                tls_skip_verify: self.tls_skip_verify,
                interval,
                timeout,
            }
        } else if !self.tcp.is_empty() {
            CheckKind::Tcp { address: self.tcp.clone(), interval, timeout }
        } else if self.is_script() {
            CheckKind::Script { args: self.args.clone(), interval, timeout }
        } else {
            CheckKind::Ttl { ttl: from_nanos(self.ttl) }
        }
    }
}

fn foreign_kind(fields: &Fields<'_>) -> Result<Option<&'static str>, Fault> {
    let kinds = [
        ("GRPC", "gRPC"),
        ("DockerContainerID", "Docker"),
        ("AliasNode", "Alias"),
        ("AliasService", "Alias"),
        ("UDP", "UDP"),
        ("H2PING", "HTTP/2 ping"),
        ("OSService", "OS service"),
    ];
    for (field, kind) in kinds {
        if !fields.text(field)?.is_empty() {
            return Ok(Some(kind));
        }
    }
    Ok(None)
}

fn at_least_one(count: i64) -> u32 {
    u32::try_from(count.clamp(1, i64::from(u32::MAX))).unwrap_or(1)
}

fn output_bytes(asked: i64) -> usize {
    match usize::try_from(asked) {
        Ok(0) | Err(_) => OUTPUT_BYTES_MAX,
        Ok(bytes) => bytes.min(OUTPUT_BYTES_MAX),
    }
}
