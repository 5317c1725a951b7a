//! One streamed completion: sends it, reads its events, notes when text came.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde::Deserialize;

use crate::clock::Clock;
use crate::connection::open_http;

/// What is shown of an answer that is an error.
const SHOWN_BYTES: usize = 200;

/// A whole answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// When its first text and its last came; if there was none, when it was said to be over.
    pub(super) first: Duration,
    pub(super) last: Duration,
    has_begun: bool,
    /// Its tokens, and its prompt's, as the server counted them.
    pub(super) tokens: u64,
    pub(super) prompt_tokens: u64,
    pub(super) text: String,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    text: String,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    completion_tokens: u64,
    prompt_tokens: u64,
}

/// Sends a request on a connection of its own and reads its answer to the end.
///
/// # Errors
/// What came instead, in few words: a status with what the server said, or what broke.
pub(super) async fn complete(
    address: &str,
    request: Request<Full<Bytes>>,
    clock: Clock,
) -> Result<Answer, String> {
    let (mut sender, _) = open_http(address, clock).await?;
    let response = sender.send_request(request).await;
    let response = response.map_err(|error| format!("connection: {error}"))?;
    let status = response.status();
    let mut body = response.into_body();
    let (mut unread, mut answer) = (Vec::new(), Answer::default());
    let mut is_over = false;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("connection: {error}"))?;
        let Some(data) = frame.data_ref() else { continue };
        unread.extend_from_slice(data);
        if status == StatusCode::OK {
            is_over |= events(&mut unread, &mut answer, clock.now())?;
        }
    }
    if status != StatusCode::OK {
        let said = String::from_utf8_lossy(&unread[..unread.len().min(SHOWN_BYTES)]).into_owned();
        return Err(format!("{} {}", status.as_u16(), said.escape_debug()));
    }
    if !is_over {
        return Err("the stream was cut".to_owned());
    }
    if !answer.has_begun || answer.tokens == 0 {
        return Err("an answer without tokens".to_owned());
    }
    Ok(answer)
}

/// Takes the whole lines out of what was received by `now`. Says whether the last event was among them.
fn events(unread: &mut Vec<u8>, answer: &mut Answer, now: Duration) -> Result<bool, String> {
    let Some(end) = unread.iter().rposition(|byte| *byte == b'\n') else { return Ok(false) };
    let mut is_over = false;
    for line in unread.drain(..=end).collect::<Vec<u8>>().split(|byte| *byte == b'\n') {
        let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { continue };
        if data == b"[DONE]" {
            is_over = true;
            continue;
        }
        let event: Event = serde_json::from_slice(data)
            .map_err(|error| format!("an event that is no completion: {error}"))?;
        if let Some(error) = event.error {
            return Err(format!("error within the stream: {error}"));
        }
        for Choice { text, finish_reason } in event.choices {
            // Of some tokens there is nothing to be read.
            let is_there = !text.is_empty() || (finish_reason.is_some() && !answer.has_begun);
            if is_there && !answer.has_begun {
                (answer.first, answer.has_begun) = (now, true);
            }
            if is_there {
                answer.last = now;
            }
            answer.text += &text;
        }
        if let Some(Usage { completion_tokens, prompt_tokens }) = event.usage {
            (answer.tokens, answer.prompt_tokens) = (completion_tokens, prompt_tokens);
        }
    }
    Ok(is_over)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let stream = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n: note\n\ndata: {\"choices\":[{\"text\":\"\"}]}\n\n\
                      data: {\"choices\":[{\"text\":\"b\"}],\"usage\":null}\r\n\r\n\
                      data: {\"choices\":[],\"usage\":{\"completion_tokens\":2,\"prompt_tokens\":7}}\n\n\
                      data: [DONE]\n\n";
        for size in [1, 7, 1_000] {
            let (mut unread, mut answer, mut is_over) = (Vec::new(), Answer::default(), false);
            for (index, part) in stream.as_bytes().chunks(size).enumerate() {
                unread.extend_from_slice(part);
                is_over |= events(&mut unread, &mut answer, Duration::from_secs(index as u64)).unwrap();
            }
            assert!(is_over && unread.is_empty());
            assert_eq!((answer.text.as_str(), answer.tokens, answer.prompt_tokens), ("ab", 2, 7));
            assert!(size == 1_000 || answer.first < answer.last);
        }
    }

    #[test]
    fn an_answer_may_have_nothing_to_be_read() {
        let mut unread = b"data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}]}\n".to_vec();
        let mut answer = Answer::default();
        assert!(!events(&mut unread, &mut answer, Duration::from_secs(3)).unwrap());
        assert!(answer.has_begun && answer.first == Duration::from_secs(3) && answer.last == answer.first);
    }

    #[test]
    fn an_error_in_a_stream_is_no_answer() {
        let mut unread = b"data: {\"error\":{\"message\":\"gone\"}}\n\n".to_vec();
        let error = events(&mut unread, &mut Answer::default(), Duration::ZERO).unwrap_err();
        assert!(error.contains("gone"), "{error}");
        let error = events(&mut b"data: x\n".to_vec(), &mut Answer::default(), Duration::ZERO).unwrap_err();
        assert!(error.contains("no completion"), "{error}");
    }
}
