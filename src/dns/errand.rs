//! Questions that others have to be asked about before they are answered.

use std::net::IpAddr;

use futures_util::future::join_all;
use tokio::sync::OwnedSemaphorePermit;

use super::answer::{Answered, Client, Outcome, Request, Transport, answer_into, pass_on};
use super::counters::add_one;
use super::packet::Query;
use super::recursion::key::Key;
use super::recursion::known::{Known, Missing, Wanted};
use super::recursion::{Answer, Recursor};
use super::server::{Shared, now_unix};
use crate::live::Feed;

/// What others are asked.
pub enum Need {
    /// The whole answer.
    Reply(Box<Query>),
    /// Addresses of hosts that our own answer leads to.
    Hosts(Missing),
}

/// A question on its way to others.
pub struct Errand {
    pub need: Need,
    pub packet: Vec<u8>,
    pub transport: Transport,
    pub client: IpAddr,
    pub seed: u64,
    /// There are only so many.
    pub seat: OwnedSemaphorePermit,
}

impl Errand {
    /// Asks, and writes the answer.
    pub async fn run(self, shared: &Shared, feed: &Feed) -> Option<Vec<u8>> {
        let recursor = shared.recursor.as_ref()?;
        let mut reply = Vec::new();
        let mut outcome = match self.need {
            Need::Reply(query) => {
                let answer = recursor.ask(&query.text, &Key::of(&query)).await;
                let client = Client { ip: self.client, cookies: &shared.cookies };
                let (transport, now) = (self.transport, now_unix());
                pass_on(&shared.config, &query, &answer, (client, transport, now), &mut reply)
            }
            Need::Hosts(missing) => {
                let known = ask_about(recursor, missing).await;
                let distances = feed.distances();
                let request = Request {
                    packet: &self.packet,
                    transport: self.transport,
                    seed: self.seed,
                    now_unix: now_unix(),
                    client: Some(Client { ip: self.client, cookies: &shared.cookies }),
                    known: Some(&known),
                    distances: Some(&*distances),
                };
                match answer_into(&feed.view(), &shared.config, request, &mut reply) {
                    Answered::Reply(outcome) | Answered::Incomplete(outcome, _) => outcome,
                    Answered::Silence | Answered::Elsewhere(_) => return None,
                }
            }
        };
        let circumstances = (self.client, now_unix());
        let is_sent = self.transport != Transport::Udp
            || shared.restrain(&mut outcome, circumstances, self.packet.len(), &mut reply);
        shared.counters.count(&outcome);
        is_sent.then_some(reply)
    }
}

/// Asks about several hosts at once.
async fn ask_about(recursor: &Recursor, missing: Missing) -> Known {
    let ask = |wanted: Wanted| async move {
        let said = match Key::own(&wanted.0, wanted.1) {
            Some(key) => match recursor.ask(&wanted.0, &key).await {
                Answer::Reply { reply, .. } => reply.foreign(),
                Answer::Failed | Answer::Refused => None,
            },
            None => None,
        };
        (wanted, said.unwrap_or_default())
    };
    let mut known = Known::default();
    for (wanted, said) in join_all(missing.into_iter().map(ask)).await {
        known.add(wanted, said);
    }
    known
}

/// What becomes of a packet.
pub enum Told {
    /// Nothing is to be sent.
    Silence,
    /// The reply is ready.
    Ready,
    /// Others are asked first.
    Later(Errand),
}

/// Tells what to do with a question that others have to be asked about, or to answer it from memory.
pub fn begin(
    shared: &Shared,
    request: Request<'_>,
    answered: Answered,
    reply: &mut Vec<u8>,
) -> (Told, Option<Outcome>) {
    let (Some(recursor), Some(client)) = (&shared.recursor, request.client) else {
        return (Told::Silence, None);
    };
    let circumstances = (client, request.transport, request.now_unix);
    let mut pass = |query: &Query, answer: &Answer| {
        let outcome = pass_on(&shared.config, query, answer, circumstances, reply);
        (Told::Ready, Some(outcome))
    };
    let (need, so_far) = match answered {
        Answered::Silence => return (Told::Silence, None),
        Answered::Reply(outcome) => return (Told::Ready, Some(outcome)),
        Answered::Incomplete(outcome, missing) => (Need::Hosts(missing), Some(outcome)),
        Answered::Elsewhere(query) if recursor.is_circle(&query.text) => {
            return pass(&query, &Answer::Refused);
        }
        Answered::Elsewhere(query) => {
            if let Some(answer) = recursor.recall(&Key::of(&query)) {
                return pass(&query, &answer);
            }
            (Need::Reply(query), None)
        }
    };
    let Ok(seat) = std::sync::Arc::clone(&shared.seats).try_acquire_owned() else {
        add_one(&shared.counters.recursion.shed);
        return match (need, so_far) {
            (Need::Reply(query), _) => pass(&query, &Answer::Failed),
            // Better without addresses than not at all.
            (Need::Hosts(_), outcome) => (Told::Ready, outcome),
        };
    };
    let errand = Errand {
        need,
        packet: request.packet.to_vec(),
        transport: request.transport,
        client: client.ip,
        seed: request.seed,
        seat,
    };
    (Told::Later(errand), None)
}
