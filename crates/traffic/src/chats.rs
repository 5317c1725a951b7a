//! Recorded requests for a language model: when each came, and how long its prompt and its answer were.

use std::time::Duration;

use crate::TrafficError;

/// Recorded requests, by time.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatTrace {
    requests: Vec<Chat>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chat {
    /// After the beginning.
    pub at: Duration,
    /// Tokens of its prompt, at least 1.
    pub prompt: u32,
    /// Tokens of its answer, at least 1.
    pub new: u32,
}

impl ChatTrace {
    /// The trace that comes with this crate; see `traces/README.md`.
    pub fn azure_2023() -> Self {
        Self::parse(include_str!("../traces/azure_llm_2023_conv.csv")).expect("tested")
    }

    /// Reads a CSV file with the columns `arrival_ms`, `input_tokens` and `output_tokens`. Other columns,
    /// empty lines and lines that begin with `#` are passed over.
    ///
    /// # Errors
    /// The first line that is not of this form.
    pub fn parse(text: &str) -> Result<Self, TrafficError> {
        let fail = |index: usize, reason: String| TrafficError::Trace { line: index + 1, reason };
        let mut lines =
            text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let (at, header) = lines.next().ok_or_else(|| fail(0, "the file is empty".to_owned()))?;
        let column = |wanted: &str| {
            let position = header.split(',').position(|name| name.trim() == wanted);
            position.ok_or_else(|| fail(at, format!("no column `{wanted}` in `{header}`")))
        };
        let (arrival, input, output) =
            (column("arrival_ms")?, column("input_tokens")?, column("output_tokens")?);
        let chat = |(index, line): (usize, &str)| {
            let cells: Vec<&str> = line.split(',').map(str::trim).collect();
            let wrong = || fail(index, format!("`{line}` is not a time and two numbers of tokens"));
            let cell = |column: usize| cells.get(column).copied().ok_or_else(wrong);
            let ms = cell(arrival)?.parse::<f64>().ok().filter(|ms| (0.0..1e12).contains(ms));
            let tokens = |column: usize| -> Result<u32, TrafficError> {
                Ok(cell(column)?.parse::<u32>().map_err(|_| wrong())?.max(1))
            };
            let at = Duration::from_secs_f64(ms.ok_or_else(wrong)? / 1e3);
            Ok(Chat { at, prompt: tokens(input)?, new: tokens(output)? })
        };
        let mut requests = lines.map(chat).collect::<Result<Vec<_>, _>>()?;
        requests.sort_by_key(|chat| chat.at);
        if requests.is_empty() {
            return Err(fail(at, "there are no requests".to_owned()));
        }
        Ok(Self { requests })
    }

    /// The requests so many times faster and shorter, the shortest of one token.
    pub fn scaled(&self, speed: f64, shorter: u32) -> impl Iterator<Item = Chat> + '_ {
        let shorter = shorter.max(1);
        self.requests.iter().map(move |chat| Chat {
            at: chat.at.div_f64(speed),
            prompt: (chat.prompt / shorter).max(1),
            new: (chat.new / shorter).max(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_sorted_and_scaled() {
        let text = "arrival_ms,input_tokens,output_tokens\n5000,80,3\n# late\n1000,391,104\n";
        let chats: Vec<Chat> = ChatTrace::parse(text).unwrap().scaled(2.0, 8).collect();
        let expected = [
            Chat { at: Duration::from_millis(500), prompt: 48, new: 13 },
            Chat { at: Duration::from_millis(2_500), prompt: 10, new: 1 },
        ];
        assert_eq!(chats, expected);
    }

    #[test]
    fn what_is_wrong_with_a_trace_is_said() {
        for (text, part) in [
            ("", "line `1`: the file is empty"),
            ("arrival_ms\n1\n", "line `1`: no column `input_tokens`"),
            ("arrival_ms,input_tokens,output_tokens\n\n1,2\n", "line `3`: `1,2` is not"),
            ("arrival_ms,input_tokens,output_tokens\n-1,2,2\n", "line `2`"),
            ("arrival_ms,input_tokens,output_tokens\n", "no requests"),
        ] {
            let error = ChatTrace::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "`{text}` gave `{error}`");
        }
    }

    #[test]
    fn the_trace_that_comes_along_is_read() {
        let trace = ChatTrace::azure_2023();
        let chats: Vec<Chat> = trace.scaled(1.0, 1).collect();
        assert_eq!(chats.len(), 10_108);
        assert_eq!((chats[0].prompt, chats[0].new), (374, 44));
        assert!(chats.is_sorted_by_key(|chat| chat.at));
    }
}
