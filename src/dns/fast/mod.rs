//! Replies that were worked out once, and are given again for as long as the services in them are the
//! same. Whatever is not of the common form, or does not fit, goes the long way, whose replies these
//! are: the same records, in another order.

pub mod plain;
pub mod template;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use self::plain::Plain;
use self::template::Template;
use super::answer::{Outcome, Transport};
use super::choose::Random;
use super::config::{Config, Order};
use super::question::{self, Lookup};
use super::record::Sections;
use super::wire;
use crate::catalog::View;
use crate::live::Feed;

/// Replies that are kept, each of 4 KiB at most. When there are more all are forgotten: those that are
/// asked for are soon back.
const TEMPLATES_MAX: usize = 4_096;
/// A name and a type.
const KEY_BYTES_MAX: usize = 257;

/// Replies that were worked out.
pub struct Fast {
    /// The view that `round` counts: held so that no other one can take its place in memory.
    view: Arc<View>,
    round: u64,
    kept: HashMap<Box<[u8]>, Kept>,
    opt: [u8; 11],
    is_on: bool,
}

struct Kept {
    template: Template,
    /// When it was last looked whether it still holds.
    round: u64,
}

impl Fast {
    pub fn new(view: Arc<View>, config: &Config) -> Self {
        // Where replies are limited to a number of records each has others.
        let is_on = !config.disable_compression && config.a_record_limit == 0;
        Self { view, round: 0, kept: HashMap::new(), opt: wire::plain_opt(config), is_on }
    }

    /// Takes over the view as it is now.
    pub fn look(&mut self, feed: &Feed) {
        if feed.renew(&mut self.view) {
            self.round += 1;
        }
    }

    /// Returns the view that it holds.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Writes the reply to a question behind what is in the buffer; `None`: it has to be worked out.
    pub fn answer(
        &mut self,
        packet: &[u8],
        (transport, is_recursion_available): (Transport, bool),
        config: &Config,
        random: &mut Random,
        out: &mut Vec<u8>,
    ) -> Option<Outcome> {
        if self.kept.is_empty() {
            return None;
        }
        let plain = Plain::read(packet)?;
        let opt: &[u8] = if plain.payload_bytes_max.is_some() { &self.opt } else { &[] };
        let bytes_max = wire::limit(plain.payload_bytes_max, transport, config);
        if transport == Transport::Udp && wire::answers_limit(plain.payload_bytes_max, config) > 0 {
            return None;
        }
        let mut buffer = [0; KEY_BYTES_MAX];
        let key = key_of(plain.question, &mut buffer);
        let kept = self.kept.get_mut(key)?;
        if kept.round != self.round {
            if !kept.template.holds(&self.view) {
                self.kept.remove(key);
                return None;
            }
            kept.round = self.round;
        }
        if !kept.template.fits(plain.question.len() + opt.len(), bytes_max) {
            return None;
        }
        kept.template.write(&plain, is_recursion_available, opt, random, out);
        let kind = Some(RecordType::from(kind_of(plain.question)));
        let code = ResponseCode::NoError;
        let has_edns = !opt.is_empty();
        Some(Outcome { kind, code, is_truncated: false, has_edns, cookie: None })
    }

    /// Keeps a reply that was worked out from the view of the last [`Fast::look`], if it can be kept.
    pub fn learn(&mut self, packet: &[u8], text: &str, sections: &Sections<'_>, config: &Config) {
        if !self.is_on {
            return;
        }
        let Some(plain) = Plain::read(packet) else { return };
        let kind = RecordType::from(kind_of(plain.question));
        if !template::is_for(kind) || sections.code != ResponseCode::NoError {
            return;
        }
        let services: &[&str] = match question::read(text, &config.zones).lookup {
            Lookup::Service { service, .. } => &[service],
            Lookup::Endpoint { name, last, .. } => &[name, last],
            _ => return,
        };
        // Pieces are put together at random.
        if services.iter().any(|service| config.order.of(service) != Order::Random) {
            return;
        }
        let mut buffer = [0; KEY_BYTES_MAX];
        let key = key_of(plain.question, &mut buffer);
        if self.kept.get(key).is_some_and(|kept| kept.round == self.round) {
            return;
        }
        if self.kept.len() >= TEMPLATES_MAX {
            self.kept.clear();
        }
        let template = Template::of(sections, &self.view, services);
        self.kept.insert(key.into(), Kept { template, round: self.round });
    }
}

/// Writes what replies are kept by: the name in lower case, and the type.
fn key_of<'b>(question: &[u8], buffer: &'b mut [u8; KEY_BYTES_MAX]) -> &'b [u8] {
    // Without the class, which is always the same.
    let length = question.len() - 2;
    let key = &mut buffer[..length];
    key.copy_from_slice(&question[..length]);
    // The type behind it is no text.
    key[..length - 2].make_ascii_lowercase();
    key
}

fn kind_of(question: &[u8]) -> u16 {
    let at = question.len() - 4;
    u16::from_be_bytes([question[at], question[at + 1]])
}
