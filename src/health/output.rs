//! What is kept of what a check said: how much, which end, and as valid text.
//!
//! Output is replicated to every node and read by people only, so it is short and clean.

/// Returns the beginning of a text: at most `bytes_max` bytes, whole characters.
pub fn head(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// Returns bytes as text: what is not UTF-8, and NUL, which ends a text for many readers of
/// SQLite, becomes U+FFFD.
pub fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text.into_owned() }
}

/// Returns an application's note, cut to its beginning and saying so.
pub fn note(text: &str, bytes_max: usize) -> String {
    let text = clean(text.as_bytes());
    if text.len() <= bytes_max {
        return text;
    }
    let kept = head(&text, bytes_max);
    format!("{kept} ... (captured {} of {} bytes)", kept.len(), text.len())
}

/// The end of a stream of bytes, in bounded memory.
#[derive(Debug)]
pub struct Tail {
    bytes: std::collections::VecDeque<u8>,
    bytes_max: usize,
    bytes_total: u64,
}

impl Tail {
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes: std::collections::VecDeque::new(), bytes_max, bytes_total: 0 }
    }

    /// Takes in what came next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes_total += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(self.bytes_max)..];
        let excess = (self.bytes.len() + bytes.len()).saturating_sub(self.bytes_max);
        self.bytes.drain(..excess);
        self.bytes.extend(bytes);
    }

    /// Returns the end as text, with a line before it that says how much is missing.
    pub fn into_text(self) -> String {
        let kept = Vec::from(self.bytes);
        let text = clean(&kept);
        if self.bytes_total == kept.len() as u64 {
            return text;
        }
        format!("Captured {} of {} bytes\n...\n{text}", kept.len(), self.bytes_total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_never_splits_a_character() {
        assert_eq!(head("häuser", 2), "h");
        assert_eq!(head("häuser", 3), "hä");
        assert_eq!(head("ab", 9), "ab");
    }

    #[test]
    fn a_note_keeps_its_beginning_and_says_what_is_missing() {
        assert_eq!(note("all well", 8), "all well");
        assert_eq!(note(&"x".repeat(6000), 4), "xxxx ... (captured 4 of 6000 bytes)");
    }

    #[test]
    fn a_stream_keeps_its_end_and_says_what_is_missing() {
        let mut tail = Tail::new(4);
        tail.push(b"ab");
        tail.push(b"cdefgh");
        tail.push(b"i");
        assert_eq!(tail.into_text(), "Captured 4 of 9 bytes\n...\nfghi");
        let mut whole = Tail::new(4);
        whole.push(b"abcd");
        assert_eq!(whole.into_text(), "abcd");
    }

    #[test]
    fn bytes_that_are_no_text_become_text() {
        assert_eq!(clean(b"a\xff\0b"), "a\u{fffd}\u{fffd}b");
        let mut tail = Tail::new(3);
        tail.push("ää".as_bytes());
        assert_eq!(tail.into_text(), "Captured 3 of 4 bytes\n...\n\u{fffd}ä");
    }
}
