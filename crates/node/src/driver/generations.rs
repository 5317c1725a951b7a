//! Requests that generate: how they come in, and how their tokens go out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quadrant_engine::{Finish, PartOutputs, Sequence, SequencePart};
use quadrant_policy::{Requests, Slice, Step};
use quadrant_types::{Error, Request, RequestId, Timing, Work};
use tokio::sync::{mpsc, oneshot};

use super::{Core, Driver};
use crate::Response;
use crate::generation::{GenerationRequest, TokenStream, TokenWriter, UNREAD_MAX, page_hashes};
use crate::message::{Generating, Message, Pending};
use crate::recorder::GenerationRecord;

impl Driver {
    pub(crate) fn generate(self: &Arc<Self>, asked: GenerationRequest) -> Result<TokenStream, Error> {
        let id = RequestId(self.next_request.fetch_add(1, Ordering::Relaxed));
        let GenerationRequest { model, generation, priority, tenant, pace, arrived, bytes_in, salt } = asked;
        let Some(language) = model.language.clone() else {
            return Err(Error::invalid(format!("the model `{}` generates nothing", model.spec.name)));
        };
        let count = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
        let (prompt, new_max) = (count(generation.prompt.len()), generation.tokens_max);
        let work = Work::Generate { prompt, new_max, bytes_in };
        let objective = pace.or(model.pace).objective(arrived);
        let request = Request { id, model: model.id, tenant, priority, arrived, objective, work };
        let prefix = page_hashes(&salt, &generation.prompt, language.page_tokens);
        let sequence = Sequence::new(generation, language).map_err(Error::invalid)?;
        let sequence = Arc::new(sequence);
        let (writer, tokens) = mpsc::channel(UNREAD_MAX);
        let is_stalled = Arc::new(AtomicBool::new(false));
        let writer = TokenWriter {
            tokens: writer,
            is_stalled: Arc::clone(&is_stalled),
            last_at: arrived,
            count: 0,
            ended_by_length: false,
        };
        let (sender, answer) = oneshot::channel();
        let pending = Pending {
            request,
            model,
            inputs: Arc::new([]),
            outputs: Arc::new([]),
            answer: sender,
            timing: Timing { arrived, submitted: self.clock.now(), ..Timing::default() },
            step: None,
            computed: None,
            generating: Some(Generating { sequence, writer, prefix, record: GenerationRecord::new(prompt) }),
        };
        self.put_in(Box::new(pending))?;
        let response = Response { id, answer, driver: Arc::clone(self), over: false };
        Ok(TokenStream { tokens, is_stalled, response, timing: None })
    }

    /// A reader that was behind wants more.
    pub(crate) fn reader_ready(&self, id: RequestId) {
        self.post(Message::ReaderReady(id));
    }

    /// What a lane is to compute of some sequences.
    pub(super) fn sequence_parts(core: &mut Core, step: &Step) -> Vec<SequencePart> {
        let part = |(id, slice): (&RequestId, &Slice)| {
            let generating = core.pending.get_mut(id).and_then(|pending| pending.generating.as_mut());
            let generating = generating.expect("only what generates has slices");
            generating.record.begins(slice.from, slice.tokens);
            SequencePart {
                request: *id,
                sequence: Arc::clone(&generating.sequence),
                from: slice.from as usize,
                tokens: slice.tokens as usize,
                pages: slice.pages.iter().map(|page| page.0 as usize).collect(),
            }
        };
        step.requests.iter().zip(&step.slices).map(part).collect()
    }

    /// Gives the tokens of a step to their readers. Says which sequences are over, and notes whose readers do
    /// not keep up.
    pub(super) fn hand_out_tokens(&self, core: &mut Core, parts: Vec<PartOutputs>) -> Requests {
        let now = self.clock.now();
        let mut over = Requests::new();
        for PartOutputs { request, generated, .. } in parts {
            let Some(generated) = generated else { continue };
            // Those who left or expired meanwhile are no longer pending.
            let Some(pending) = core.pending.get_mut(&request) else { continue };
            let Some(Generating { writer, record, .. }) = &mut pending.generating else { continue };
            let is_first = writer.count == 0;
            self.telemetry.generation.token(&pending.model.spec.name, is_first, now.since(writer.last_at));
            record.token(writer.last_at, now);
            (writer.last_at, writer.count) = (now, writer.count + 1);
            writer.ended_by_length = generated.finish == Some(Finish::Length);
            if generated.finish.is_some() {
                over.push(request);
                pending.computed = Some(Vec::new());
            }
            if writer.write(generated) {
                core.stalled.push(request);
            }
        }
        over
    }
}
