//! Requests that generate, as the protocols see them: what is asked for, and the tokens as they come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use quadrant_engine::{Finish, Generated, Generation};
use quadrant_types::{Error, Objective, PageHash, Priority, RequestId, TenantId, Time, Timing};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::{ModelEntry, Response};

/// Tokens that wait for their reader. When there are so many, the sequence waits, too.
pub(crate) const UNREAD_MAX: usize = 64;
/// By when the first token is wanted if only the time of the others is said,
const FIRST_TOKEN: Duration = Duration::from_secs(60);
/// and the time of each other if only that of the first is.
const EACH_TOKEN: Duration = Duration::from_secs(1);

/// A request that generates, checked against its model.
#[derive(Clone, Debug)]
pub struct GenerationRequest {
    /// The model, from [`crate::Handle::find`]. It has a language.
    pub model: Arc<ModelEntry>,
    /// What is to be generated.
    pub generation: Generation,
    /// How important it is.
    pub priority: Priority,
    /// On whose account.
    pub tenant: TenantId,
    /// When tokens are wanted. The model's own objectives hold for what is not said.
    pub pace: Pace,
    /// When its last byte arrived.
    pub arrived: Time,
    /// Size of what came with it.
    pub bytes_in: u64,
    /// Prompts share what they begin with only if they have the same salt.
    pub salt: Arc<str>,
}

/// When tokens are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// How long the first token may take.
    pub first: Option<Duration>,
    /// How long each further token may take, on average.
    pub each: Option<Duration>,
    /// After how long the request ends, whatever became of it.
    pub timeout: Option<Duration>,
}

impl Pace {
    /// What is not said as `other` says it.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            first: self.first.or(other.first),
            each: self.each.or(other.each),
            timeout: self.timeout.or(other.timeout),
        }
    }

    /// The objective of a request that arrived then.
    pub(crate) fn objective(self, arrived: Time) -> Objective {
        let until = self.timeout.map_or(Time::MAX, |timeout| arrived + timeout);
        match (self.first, self.each) {
            (None, None) if self.timeout.is_none() => Objective::BestEffort,
            (None, None) => Objective::EndBy(until),
            (first, each) => Objective::Tokens {
                first_by: arrived + first.unwrap_or(FIRST_TOKEN),
                each: each.unwrap_or(EACH_TOKEN),
                until,
            },
        }
    }
}

/// Whoever writes the tokens of a request.
#[derive(Debug)]
pub(crate) struct TokenWriter {
    pub(crate) tokens: mpsc::Sender<Generated>,
    pub(crate) is_stalled: Arc<AtomicBool>,
    /// When the last of them came, or the request if there was none, and how many there were.
    pub(crate) last_at: Time,
    pub(crate) count: u32,
    /// Whether the last one was so only because no more were asked for.
    pub(crate) ended_by_length: bool,
}

impl TokenWriter {
    /// Hands a token over. Says whether the reader is so far behind that no more are to be made until he asks
    /// for them.
    pub(crate) fn write(&mut self, generated: Generated) -> bool {
        // One who is gone has said so, and there is room for one whenever one is made.
        drop(self.tokens.try_send(generated));
        if self.tokens.capacity() > 0 {
            return false;
        }
        self.is_stalled.store(true, Ordering::SeqCst);
        // He may have read on before he could see that.
        let is_behind = self.tokens.capacity() < UNREAD_MAX / 2;
        is_behind || !self.is_stalled.swap(false, Ordering::SeqCst)
    }
}

/// The tokens of a request as they come. Dropping it cancels the request.
#[derive(Debug)]
pub struct TokenStream {
    pub(crate) tokens: mpsc::Receiver<Generated>,
    pub(crate) is_stalled: Arc<AtomicBool>,
    pub(crate) response: Response,
    pub(crate) timing: Option<Timing>,
}

impl TokenStream {
    /// Which request it is, for [`crate::Handle::explain`].
    pub fn id(&self) -> RequestId {
        self.response.id
    }

    /// Where the time went, once the last token was read.
    pub fn timing(&self) -> Option<&Timing> {
        self.timing.as_ref()
    }

    /// The next token; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<Generated, Error>> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`TokenStream::next`].
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Generated, Error>>> {
        if let Some(generated) = std::task::ready!(self.tokens.poll_recv(context)) {
            if self.tokens.len() <= UNREAD_MAX / 2 && self.is_stalled.swap(false, Ordering::SeqCst) {
                self.response.driver.reader_ready(self.response.id);
            }
            return Poll::Ready(Some(match generated.finish {
                Some(Finish::Failed(reason)) => Err(Error::invalid(reason)),
                None | Some(Finish::Stop | Finish::Length) => Ok(generated),
            }));
        }
        if self.response.over {
            return Poll::Ready(None);
        }
        let answer = std::task::ready!(std::pin::Pin::new(&mut self.response).poll(context));
        Poll::Ready(match answer {
            Ok(answer) => {
                self.timing = Some(answer.timing);
                None
            }
            Err(error) => Some(Err(error)),
        })
    }
}

/// What tells the whole pages of a prompt from others: of each the hash of the salt and of all tokens up to
/// its end.
pub(crate) fn page_hashes(salt: &str, prompt: &[u32], page_tokens: usize) -> Arc<[PageHash]> {
    let mut so_far = Sha256::new_with_prefix(salt);
    // No salt may read like another one with tokens behind it.
    so_far.update((salt.len() as u64).to_le_bytes());
    let whole = prompt.chunks_exact(page_tokens.max(1));
    let hash = |page: &[u32]| {
        for token in page {
            so_far.update(token.to_le_bytes());
        }
        let digest = so_far.clone().finalize();
        let half = digest.first_chunk::<16>().copied().unwrap_or_default();
        PageHash(u128::from_le_bytes(half))
    };
    whole.map(hash).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_begin_alike_have_the_same_hashes_up_to_where_they_differ() {
        let hashes = |tokens: &[u32]| page_hashes("", tokens, 2).to_vec();
        let (one, other) = (hashes(&[1, 2, 3, 4, 5]), hashes(&[1, 2, 3, 5, 5, 6]));
        assert_eq!((one.len(), other.len()), (2, 3));
        assert!(one[0] == other[0] && one[1] != other[1]);
        assert_ne!(hashes(&[3, 4])[0], one[1], "what comes before counts");
        assert_ne!(page_hashes("salt", &[1, 2], 2)[0], one[0]);
    }

    #[test]
    fn what_is_said_of_the_pace_is_filled_up() {
        let ms = Duration::from_millis;
        let said = Pace { first: Some(ms(500)), ..Pace::default() };
        let model = Pace { first: Some(ms(900)), each: Some(ms(80)), timeout: None };
        let at = Time::from_nanos(7);
        let tokens = |first, each| Objective::Tokens { first_by: at + first, each, until: Time::MAX };
        assert_eq!(said.or(model).objective(at), tokens(ms(500), ms(80)));
        assert_eq!(said.objective(at), tokens(ms(500), EACH_TOKEN));
        assert_eq!(Pace::default().objective(at), Objective::BestEffort);
        let timed = Pace { timeout: Some(ms(3)), ..Pace::default() };
        assert_eq!(timed.objective(at), Objective::EndBy(at + ms(3)));
    }

    #[test]
    fn a_writer_stops_when_its_reader_is_far_behind() {
        let (tokens, mut reader) = mpsc::channel(UNREAD_MAX);
        let is_stalled = Arc::new(AtomicBool::new(false));
        let mut writer = TokenWriter {
            tokens,
            is_stalled: Arc::clone(&is_stalled),
            last_at: Time::ZERO,
            count: 0,
            ended_by_length: false,
        };
        let token = |number| Generated { token: number, text: String::new(), likely: None, finish: None };
        for number in 1..UNREAD_MAX {
            assert!(!writer.write(token(number as u32)));
        }
        assert!(writer.write(token(0)) && is_stalled.load(Ordering::SeqCst));
        for _ in 0..UNREAD_MAX {
            assert!(reader.try_recv().is_ok());
        }
    }
}
