//! A reply that was worked out once, in pieces that can be put together in any order.

use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::plain::Plain;
use crate::catalog::{ServiceEntry, View};
use crate::dns::choose::Random;
use crate::dns::name::{Name, Spelling};
use crate::dns::record::{Data, Record, Sections};
use crate::dns::recursion::key::wire_name;
use crate::dns::wire::{self, HEADER_BYTES};

/// More answers than so many are not kept in pieces.
pub const ANSWERS_MAX: usize = 64;
/// Nor are longer replies, in bytes: they would fill the memory, and pointers would not reach.
pub const BYTES_MAX: usize = 4_096;
/// A pointer to the question's name.
const TO_QUESTION: [u8; 2] = [0xc0, HEADER_BYTES as u8];
/// Where the target stands in an SRV record whose owner is a pointer: behind type, class, TTL, length,
/// priority, weight and port.
const TARGET_AT: u16 = 2 + 10 + 6;

/// A reply in pieces.
#[derive(Clone, Debug)]
pub struct Template {
    /// The services that it was made of, as they were. It holds for as long as they are the same.
    services: Vec<(Box<str>, Option<Arc<ServiceEntry>>)>,
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    /// What is beside an answer, and points into it.
    additionals: u16,
}

/// An answer, and what is beside it: both in `bytes`, one behind the other.
#[derive(Clone, Debug)]
struct Piece {
    begin: u32,
    answer_end: u32,
    end: u32,
    /// Where pointers to the answer's target stand, counted from the answer's end.
    pointers: Vec<u16>,
}

impl Template {
    /// Takes a reply apart. Where that cannot be done it only says so, for as long as the services are the
    /// same.
    pub fn of(sections: &Sections<'_>, view: &View, services: &[&str]) -> Self {
        let services = services.iter().map(|name| ((*name).into(), view.service(name).cloned()));
        let services: Vec<_> = services.collect();
        let blank = Self { services, bytes: Vec::new(), pieces: Vec::new(), additionals: 0 };
        blank.clone().try_with(sections).unwrap_or(blank)
    }

    fn try_with(mut self, sections: &Sections<'_>) -> Option<Self> {
        let is_simple = sections.code == ResponseCode::NoError
            && sections.is_authoritative
            && sections.has_edns
            && (1..=ANSWERS_MAX).contains(&sections.answers.len())
            && sections.authorities.is_empty();
        if !is_simple {
            return None;
        }
        let mut beside = sections.additionals.iter().peekable();
        for answer in &sections.answers {
            self.push_answer(answer)?;
            // What belongs to an answer follows its target's address.
            let Data::Srv { target, .. } = answer.data else { continue };
            let address = beside.next_if(|record| record.owner == target && record.is_address())?;
            self.push_beside(address, &target)?;
            while let Some(text) = beside.next_if(|record| matches!(record.data, Data::Txt { .. }))
            {
                self.push_beside(text, &target)?;
            }
        }
        let is_whole = beside.next().is_none();
        (is_whole && self.bytes.len() <= BYTES_MAX).then_some(self)
    }

    fn push_answer(&mut self, answer: &Record<'_>) -> Option<()> {
        if answer.owner != Name::Question {
            return None;
        }
        let begin = self.place();
        self.bytes.extend_from_slice(&TO_QUESTION);
        match answer.data {
            // A host's addresses are another service's business, or nobody's here.
            Data::Srv { target: Name::Host(_), .. } => return None,
            Data::A(_) | Data::Aaaa(_) | Data::Srv { .. } => {
                wire::uncompressed(&mut self.bytes, answer)?;
            }
            _ => return None,
        }
        let answer_end = self.place();
        let pointers = Vec::new();
        self.pieces.push(Piece { begin, answer_end, end: answer_end, pointers });
        Some(())
    }

    fn push_beside(&mut self, record: &Record<'_>, target: &Name<'_>) -> Option<()> {
        let at = self.place();
        let is_target = record.owner == *target;
        if is_target {
            self.bytes.extend_from_slice(&[0, 0]);
        } else {
            self.bytes.extend_from_slice(&wire_name(&Spelling::of(&record.owner)?));
        }
        wire::uncompressed(&mut self.bytes, record)?;
        let end = self.place();
        let piece = self.pieces.last_mut()?;
        if is_target {
            piece.pointers.push(u16::try_from(at - piece.answer_end).ok()?);
        }
        piece.end = end;
        self.additionals += 1;
        Some(())
    }

    fn place(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("a few records")
    }

    /// Tells whether the services that it was made of are still the same.
    pub fn holds(&self, view: &View) -> bool {
        self.services.iter().all(|(name, then)| match (then, view.service(name)) {
            (Some(then), Some(now)) => Arc::ptr_eq(then, now),
            (None, None) => true,
            _ => false,
        })
    }

    /// Tells whether it has a reply, and one that is no longer than that.
    pub fn fits(&self, question_bytes: usize, bytes_max: usize) -> bool {
        !self.pieces.is_empty() && HEADER_BYTES + question_bytes + self.bytes.len() <= bytes_max
    }

    /// Writes the reply to a question behind what is in the buffer, in an order of its own.
    pub fn write(
        &self,
        plain: &Plain<'_>,
        is_recursion_available: bool,
        opt: &[u8],
        random: &mut Random,
        out: &mut Vec<u8>,
    ) {
        let start = out.len();
        let count = u16::try_from(self.pieces.len()).expect("ANSWERS_MAX is less").to_be_bytes();
        let beside = (self.additionals + u16::from(!opt.is_empty())).to_be_bytes();
        let bit = |bit: u8, is_set: bool| if is_set { bit } else { 0 };
        out.extend_from_slice(&[
            plain.id[0],
            plain.id[1],
            0x84 | bit(0x01, plain.is_recursion_desired),
            bit(0x80, is_recursion_available) | bit(0x10, plain.is_checking_disabled),
            0,
            1,
            count[0],
            count[1],
            0,
            0,
            beside[0],
            beside[1],
        ]);
        out.extend_from_slice(plain.question);
        let mut order: [u8; ANSWERS_MAX] = std::array::from_fn(|place| place as u8);
        let order = &mut order[..self.pieces.len()];
        random.shuffle(order);
        let mut places = [0_u16; ANSWERS_MAX];
        for index in &*order {
            let piece = &self.pieces[usize::from(*index)];
            places[usize::from(*index)] = (out.len() - start) as u16;
            out.extend_from_slice(&self.bytes[piece.begin as usize..piece.answer_end as usize]);
        }
        if self.additionals > 0 {
            for index in &*order {
                let piece = &self.pieces[usize::from(*index)];
                let at = out.len();
                out.extend_from_slice(&self.bytes[piece.answer_end as usize..piece.end as usize]);
                let pointer = (0xc000 | (places[usize::from(*index)] + TARGET_AT)).to_be_bytes();
                for place in &piece.pointers {
                    let place = at + usize::from(*place);
                    out[place..place + 2].copy_from_slice(&pointer);
                }
            }
        }
        out.extend_from_slice(opt);
    }
}

/// Tells whether replies to questions of a type may be kept in pieces.
pub fn is_for(kind: RecordType) -> bool {
    matches!(kind, RecordType::A | RecordType::AAAA | RecordType::ANY | RecordType::SRV)
}

const _: () = assert!(HEADER_BYTES + 259 + BYTES_MAX < 0x3fff, "pointers have 14 bits");
