//! The one path under both protocols: check a request against its model, hand it to the node, wait, and
//! reduce what is to be reduced.

use std::sync::Arc;

use quadrant_node::{Answer, ModelEntry, Submission};
use quadrant_types::{Error, ErrorCode, Priority, Tensor, Time};

use crate::heavy::HEAVY_ELEMENTS;
use crate::terms::Terms;
use crate::validate::{self, OutputPlan, OutputPlans};
use crate::wire::{AnsweredOutput, WireAnswer, WireRequest};
use crate::{Shared, classify, deadline};

/// A request that fits its model. It borrows nothing, so it can come back from another thread.
#[derive(Debug)]
pub(crate) struct Prepared {
    submission: Submission,
    plans: OutputPlans,
    id: String,
}

/// Checks `request` against `model`. `terms` is what the transport says of it.
///
/// # Errors
/// The first thing that does not fit, in Triton's words.
pub(crate) fn prepare(
    model: &Arc<ModelEntry>,
    request: WireRequest<'_>,
    arrived: Time,
    terms: Terms,
) -> Result<Prepared, Error> {
    if model.language.is_some() {
        return Err(generates(&model.spec.name));
    }
    let plans = validate::outputs(&model.spec, &request)?;
    let priority = match request.priority {
        0 => terms.priority.unwrap_or(model.priority),
        given => Priority(u32::try_from(given).unwrap_or(u32::MAX)),
    };
    let objective = deadline::objective(arrived, terms, request.timeout_us);
    let id = request.id.into_owned();
    let inputs = validate::inputs(model, &id, request.inputs)?;
    let submission = Submission {
        model: Arc::clone(model),
        inputs: inputs.into_iter().collect(),
        outputs: plans.iter().map(|plan| plan.index).collect(),
        priority,
        tenant: terms.tenant,
        objective,
        arrived,
    };
    Ok(Prepared { submission, plans, id })
}

/// Waits for the answer. Dropping the future cancels the request.
///
/// # Errors
/// What the node says, or an answer above the limit.
pub(crate) async fn run(shared: &Shared, prepared: Prepared) -> Result<WireAnswer, Error> {
    let Prepared { submission, plans, id } = prepared;
    let model = Arc::clone(&submission.model);
    let Answer { id: request, outputs, timing } = shared.handle.submit(submission)?.await?;
    if outputs.len() != plans.len() {
        let (got, wanted) = (outputs.len(), plans.len());
        return Err(Error::new(
            ErrorCode::Internal,
            format!("`{got}` outputs came back instead of `{wanted}`"),
        ));
    }
    let mut answered = Vec::with_capacity(outputs.len());
    let mut bytes = 0_usize;
    for (plan, tensor) in plans.iter().zip(outputs) {
        let tensor = if plan.classes > 0 { classified(shared, &model, *plan, tensor).await? } else { tensor };
        bytes = bytes.saturating_add(tensor.data.len());
        answered.push(AnsweredOutput { index: plan.index, tensor, is_binary: plan.is_binary });
    }
    let bytes_max = shared.limits.response_bytes_max;
    if bytes > bytes_max {
        return Err(too_large(bytes, bytes_max));
    }
    Ok(WireAnswer { model, id, request, outputs: answered, timing })
}

/// The error of asking a model for one answer that gives many.
fn generates(name: &str) -> Error {
    Error::new(
        ErrorCode::Unsupported,
        format!(
            "inference doesn't support models with decoupled transaction policy, such as '{name}': ask for \
             `/v1/completions`, `/v2/models/{name}/generate` or `ModelStreamInfer`"
        ),
    )
}

/// The error of an answer above the limit.
pub(crate) fn too_large(bytes: usize, bytes_max: usize) -> Error {
    Error::new(
        ErrorCode::TooLarge,
        format!(
            "the answer has at least `{bytes}` bytes, above the limit of `{bytes_max}`; ask for fewer outputs"
        ),
    )
}

async fn classified(
    shared: &Shared,
    model: &Arc<ModelEntry>,
    plan: OutputPlan,
    tensor: Tensor,
) -> Result<Tensor, Error> {
    let name = &model.spec.outputs[plan.index].name;
    let labels = model.spec.labels.get(name).map(Arc::clone);
    let is_heavy = tensor.elements() > HEAVY_ELEMENTS;
    let classify = move || classify::classify(&tensor, plan.classes, labels.as_deref().unwrap_or_default());
    shared.heavy.run(is_heavy, classify).await
}
