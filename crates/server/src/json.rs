//! A pull parser over the bytes of a JSON text. It borrows strings, builds no tree, and leaves numbers as
//! text until somebody knows their type.
//!
//! What is wrong with a text is said as RapidJSON says it, with the offset, because clients of Triton have
//! tests for these words. Nesting is bounded; nothing here recurses deeper than the bound.

use std::borrow::Cow;

use quadrant_types::Error;

/// A position in a JSON text.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
    depth_max: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of `text`, which may nest `depth_max` deep.
    pub(crate) fn new(text: &'a [u8], depth_max: usize) -> Self {
        Self { text, at: 0, depth: 0, depth_max }
    }

    /// At the start of a value that [`Cursor::skip`] returned, `depth` deep in its text.
    pub(crate) fn inside(value: &'a [u8], depth: usize, depth_max: usize) -> Self {
        Self { text: value, at: 0, depth, depth_max }
    }

    /// How deep the present position is.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Bytes from here to the end of the text.
    pub(crate) fn remaining(&self) -> usize {
        self.text.len() - self.at
    }

    /// The first byte of the next value, or `None` at the end.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        while let Some(byte @ (b' ' | b'\n' | b'\r' | b'\t')) = self.text.get(self.at).copied() {
            debug_assert!(byte.is_ascii_whitespace());
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    /// Takes `byte` if it is next.
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    /// Checks that nothing follows.
    pub(crate) fn end(&mut self) -> Result<(), Error> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.wrong("The document root must not be followed by other values.")),
        }
    }

    /// Goes through an object; `member` must consume the value of each name it is given.
    pub(crate) fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.descend(b'{')?;
        if !self.take(b'}') {
            loop {
                if self.peek() != Some(b'"') {
                    return Err(self.wrong("Missing a name for object member."));
                }
                let name = self.string()?;
                if !self.take(b':') {
                    return Err(self.wrong("Missing a colon after a name of object member."));
                }
                member(self, name)?;
                if self.take(b'}') {
                    break;
                }
                if !self.take(b',') {
                    return Err(self.wrong("Missing a comma or } after an object member."));
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Goes through an array; `element` must consume each element.
    pub(crate) fn array(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.descend(b'[')?;
        if !self.take(b']') {
            loop {
                element(self)?;
                if self.take(b']') {
                    break;
                }
                if !self.take(b',') {
                    return Err(self.wrong("Missing a comma or ] after an array element."));
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn descend(&mut self, open: u8) -> Result<(), Error> {
        if !self.take(open) {
            return Err(self.unexpected());
        }
        self.depth += 1;
        if self.depth > self.depth_max {
            return Err(self.wrong(&format!("Nesting is deeper than {}.", self.depth_max)));
        }
        Ok(())
    }

    /// A string, borrowed unless it has escapes.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>, Error> {
        if !self.take(b'"') {
            return Err(self.unexpected());
        }
        let start = self.at;
        let plain = self.text[start..].iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f));
        self.at = plain.map_or(self.text.len(), |length| start + length);
        let head = self.utf8(start)?;
        if self.text.get(self.at) == Some(&b'"') {
            self.at += 1;
            return Ok(Cow::Borrowed(head));
        }
        let mut owned = head.to_owned();
        loop {
            match self.text.get(self.at) {
                None => return Err(self.wrong("Missing a closing quotation mark in string.")),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Cow::Owned(owned));
                }
                Some(b'\\') => owned.push(self.escape()?),
                Some(0..=0x1f) => return Err(self.wrong("Invalid encoding in string.")),
                Some(_) => {
                    let start = self.at;
                    let plain = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..=0x1f);
                    let length = self.text[start..].iter().position(plain);
                    self.at = length.map_or(self.text.len(), |length| start + length);
                    owned.push_str(self.utf8(start)?);
                }
            }
        }
    }

    fn utf8(&self, start: usize) -> Result<&'a str, Error> {
        let text: &'a [u8] = &self.text[start..self.at];
        std::str::from_utf8(text).map_err(|_| self.wrong("Invalid encoding in string."))
    }

    /// The character that an escape stands for.
    fn escape(&mut self) -> Result<char, Error> {
        let kind = self.text.get(self.at + 1).copied();
        let simple = match kind {
            Some(plain @ (b'"' | b'\\' | b'/')) => char::from(plain),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(),
            _ => return Err(self.wrong("Invalid escape character in string.")),
        };
        self.at += 2;
        Ok(simple)
    }

    fn unicode_escape(&mut self) -> Result<char, Error> {
        let first = self.hex4()?;
        let code = match first {
            0xd800..=0xdbff => {
                if self.text.get(self.at..self.at + 2) != Some(b"\\u") {
                    return Err(self.wrong("The surrogate pair in string is invalid."));
                }
                let second = self.hex4()?;
                if !(0xdc00..=0xdfff).contains(&second) {
                    return Err(self.wrong("The surrogate pair in string is invalid."));
                }
                0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)
            }
            code => code,
        };
        char::from_u32(code).ok_or_else(|| self.wrong("The surrogate pair in string is invalid."))
    }

    /// The number of `\uXXXX`.
    fn hex4(&mut self) -> Result<u32, Error> {
        let digits =
            self.text.get(self.at + 2..self.at + 6).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit));
        let Some(digits) = digits else {
            return Err(self.wrong("Incorrect hex digit after \\u escape in string."));
        };
        let value = |digit: &u8| char::from(*digit).to_digit(16).expect("only hex digits passed the filter");
        self.at += 6;
        Ok(digits.iter().fold(0, |code, digit| code << 4 | value(digit)))
    }

    /// The text of a number, checked against JSON's grammar.
    pub(crate) fn number(&mut self) -> Result<&'a str, Error> {
        self.peek();
        let start = self.at;
        self.at += usize::from(self.text.get(self.at) == Some(&b'-'));
        match self.text.get(self.at) {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return Err(self.unexpected()),
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.some_digits("Miss fraction part in number.")?;
        }
        if let Some(b'e' | b'E') = self.text.get(self.at) {
            self.at += 1;
            self.at += usize::from(matches!(self.text.get(self.at), Some(b'+' | b'-')));
            self.some_digits("Miss exponent in number.")?;
        }
        self.utf8(start)
    }

    fn digits(&mut self) {
        while let Some(b'0'..=b'9') = self.text.get(self.at) {
            self.at += 1;
        }
    }

    fn some_digits(&mut self, missing: &str) -> Result<(), Error> {
        let start = self.at;
        self.digits();
        if self.at == start { Err(self.wrong(missing)) } else { Ok(()) }
    }

    /// `true` or `false`, or `None` and nothing taken.
    pub(crate) fn boolean(&mut self) -> Option<bool> {
        self.peek();
        let rest = &self.text[self.at..];
        let value = rest.starts_with(b"true");
        let is_boolean = value || rest.starts_with(b"false");
        self.at += if is_boolean { 5 - usize::from(value) } else { 0 };
        is_boolean.then_some(value)
    }

    /// Steps over any value and returns its text.
    pub(crate) fn skip(&mut self) -> Result<&'a [u8], Error> {
        let first = self.peek();
        let start = self.at;
        match first {
            Some(b'{') => self.object(|cursor, _| cursor.skip().map(drop))?,
            Some(b'[') => self.array(|cursor| cursor.skip().map(drop))?,
            Some(b'"') => drop(self.string()?),
            Some(b'-' | b'0'..=b'9') => drop(self.number()?),
            Some(b't' | b'f') if self.boolean().is_some() => (),
            Some(b'n') if self.text[self.at..].starts_with(b"null") => self.at += 4,
            _ => return Err(self.unexpected()),
        }
        Ok(&self.text[start..self.at])
    }

    /// The error for a byte that begins no value.
    pub(crate) fn unexpected(&mut self) -> Error {
        match self.peek() {
            None if self.at == 0 || self.text[..self.at].iter().all(u8::is_ascii_whitespace) => {
                self.wrong("The document is empty.")
            }
            _ => self.wrong("Invalid value."),
        }
    }

    /// An error at the present position.
    pub(crate) fn wrong(&self, what: &str) -> Error {
        Error::invalid(format!("failed to parse the request JSON buffer: {what} at {}", self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(), &str>) {
        let mut cursor = Cursor::new(text.as_bytes(), 4);
        let result = cursor.skip().and_then(|_| cursor.end());
        let result = result.map_err(|error| error.message.into_owned());
        let expected = expected.map_err(|what| format!("failed to parse the request JSON buffer: {what}"));
        assert_eq!(result, expected, "{text}");
    }

    #[test]
    fn mistakes_are_named_as_rapidjson_names_them() {
        check("{bad", Err("Missing a name for object member. at 1"));
        check("", Err("The document is empty. at 0"));
        check("  ", Err("The document is empty. at 2"));
        check("{\"a\" 1}", Err("Missing a colon after a name of object member. at 5"));
        check("{\"a\":1 2}", Err("Missing a comma or } after an object member. at 7"));
        check("[1 2]", Err("Missing a comma or ] after an array element. at 3"));
        check("[1,]", Err("Invalid value. at 3"));
        check("[tru]", Err("Invalid value. at 1"));
        check("[NaN]", Err("Invalid value. at 1"));
        check("\"a", Err("Missing a closing quotation mark in string. at 2"));
        check("\"\\x\"", Err("Invalid escape character in string. at 1"));
        check("\"\\u12g4\"", Err("Incorrect hex digit after \\u escape in string. at 1"));
        check("\"\\ud800\"", Err("The surrogate pair in string is invalid. at 7"));
        check("1.", Err("Miss fraction part in number. at 2"));
        check("1e", Err("Miss exponent in number. at 2"));
        check("01", Err("The document root must not be followed by other values. at 1"));
        check("[[[[[]]]]]", Err("Nesting is deeper than 4. at 5"));
        check(" { \"a\" : [ 1 , -2.5e+3 , true , false , null , \"x\" ] , \"b\" : { } } ", Ok(()));
        check("[[[[]]]]", Ok(()));
    }

    #[test]
    fn strings_are_borrowed_or_unescaped() {
        let parse = |text: &'static str| Cursor::new(text.as_bytes(), 1).string();
        assert!(matches!(parse("\"plain é\""), Ok(Cow::Borrowed("plain é"))));
        let escaped = parse("\"a\\n\\\"\\/\\u00e9\\ud83d\\ude00z\"").unwrap();
        assert_eq!(escaped, "a\n\"/é😀z");
        assert!(Cursor::new(b"\"\xff\"", 1).string().is_err());
        assert!(Cursor::new(b"\"\x01\"", 1).string().is_err());
    }
}
