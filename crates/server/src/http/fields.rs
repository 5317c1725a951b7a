//! JSON objects written field by field, for the pages that a person or a tool reads now and then.

use std::time::Duration;

use crate::http::text::{push_integer, push_string};

/// The fields of an object under construction.
pub(crate) struct Fields<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Fields<'a> {
    pub(crate) fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    pub(crate) fn key(&mut self, name: &str) {
        if !std::mem::replace(&mut self.first, false) {
            self.out.push(b',');
        }
        push_string(self.out, name);
        self.out.push(b':');
    }

    pub(crate) fn text(&mut self, name: &str, value: &str) {
        self.key(name);
        push_string(self.out, value);
    }

    pub(crate) fn number(&mut self, name: &str, value: u64) {
        self.key(name);
        push_integer(self.out, value);
    }

    pub(crate) fn milliseconds(&mut self, name: &str, value: Duration) {
        self.key(name);
        self.out.extend_from_slice(format!("{:.3}", value.as_secs_f64() * 1e3).as_bytes());
    }

    /// Where a value may be written after [`Self::key`].
    pub(crate) fn out(&mut self) -> &mut Vec<u8> {
        self.out
    }

    pub(crate) fn end(self) {
        self.out.push(b'}');
    }
}
