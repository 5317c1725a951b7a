//! Tokens' bytes as text, piece by piece, up to where it is to stop.
//!
//! A token may end within a character, and a stop string may begin in one token and end in another. So what
//! may still become a character or a stop string is kept back until it is decided; everything else goes out
//! at once, and nothing of a stop string ever does.

/// Text that is being written.
#[derive(Debug, Default)]
pub struct TextStream {
    /// What came in and has not gone out.
    pending: Vec<u8>,
    stops: Vec<String>,
}

/// What a token adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Text to go out; may be empty.
    pub text: String,
    /// Whether a stop string came: the text ends before it.
    pub stopped: bool,
}

impl TextStream {
    /// A text that ends before the first of `stops`; empty ones are none.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self { pending: Vec::new(), stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect() }
    }

    /// Takes a token's bytes in.
    pub fn push(&mut self, bytes: &[u8]) -> Piece {
        self.pending.extend_from_slice(bytes);
        let found = self.stops.iter().filter_map(|stop| find(&self.pending, stop.as_bytes())).min();
        if let Some(at) = found {
            self.pending.truncate(at);
            return Piece { text: self.finish(), stopped: true };
        }
        let decided = self.pending.len() - self.may_stop().max(unfinished(&self.pending));
        let rest = self.pending.split_off(decided);
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending = rest;
        Piece { text, stopped: false }
    }

    /// What was kept back, as nothing follows. What is no character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }

    /// Bytes at the end that a stop string may begin with.
    fn may_stop(&self) -> usize {
        let begins = |stop: &String| {
            let longest = (stop.len() - 1).min(self.pending.len());
            (0..=longest).rev().find(|count| self.pending.ends_with(&stop.as_bytes()[..*count]))
        };
        self.stops.iter().filter_map(begins).max().unwrap_or(0)
    }
}

/// Where `part` first is.
fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// Bytes at the end that may become a character: at most three.
fn unfinished(bytes: &[u8]) -> usize {
    let from = bytes.len().saturating_sub(3);
    let starts = (from..bytes.len()).rev().find(|at| bytes[*at] & 0xc0 != 0x80);
    let Some(start) = starts else { return 0 };
    match std::str::from_utf8(&bytes[start..]) {
        Err(error) if error.error_len().is_none() => bytes.len() - start,
        Ok(_) | Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The pieces of some tokens, and whether it stopped.
    fn pieces(stops: &[&str], tokens: &[&[u8]]) -> (Vec<String>, bool) {
        let mut stream = TextStream::new(stops.iter().map(|stop| (*stop).to_owned()));
        let mut texts = Vec::new();
        for token in tokens {
            let piece = stream.push(token);
            texts.push(piece.text);
            if piece.stopped {
                return (texts, true);
            }
        }
        texts.push(stream.finish());
        (texts, false)
    }

    #[test]
    fn characters_are_whole_and_stop_strings_never_seen() {
        for (stops, tokens, expected, stopped) in [
            (&[][..], &[&b"Hi"[..], b" there"][..], &["Hi", " there", ""][..], false),
            (&[], &["ä".as_bytes(), &[0xc3], &[0xa4, b'!']], &["ä", "", "ä!", ""], false),
            (
                &[],
                &[&"🙂".as_bytes()[..1], &"🙂".as_bytes()[1..3], &"🙂".as_bytes()[3..]],
                &["", "", "🙂", ""],
                false,
            ),
            (&[], &[&[0xff, b'a'], &[0xe2, 0x82]], &["\u{fffd}a", "", "\u{fffd}"], false),
            (&["\n\n"], &[b"one\n", b"two\n", b"\nthree"], &["one", "\ntwo", ""], true),
            (&["END"], &[b"the E", b"N", b"d"], &["the ", "", "ENd", ""], false),
            (&["stop", "op"], &[b"a st", b"op"], &["a ", ""], true),
            (&["aab"], &[b"aa", b"ab", b"c"], &["", "a"], true),
            (&[""], &[b"x"], &["x", ""], false),
            (&["x"], &[b"abxcd"], &["ab"], true),
        ] {
            let (found, has_stopped) = pieces(stops, tokens);
            assert_eq!(
                (found, has_stopped),
                (expected.iter().map(|text| (*text).to_owned()).collect(), stopped)
            );
        }
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_text_is_the_same(
            text in "[ab\u{e4}\u{1f642}]{0,24}",
            stop in "[ab]{1,3}",
            cuts in prop::collection::vec(0_usize..60, 0..6),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let tokens: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let (found, stopped) = pieces(&[&stop], &tokens);
            let expected = text.split(&stop).next().unwrap();
            prop_assert_eq!(found.concat(), expected);
            prop_assert_eq!(stopped, text.contains(&stop));
        }
    }
}
