//! A checker that cannot fire proves nothing. Here the scheduler is tampered with, one way at a time, and
//! the violation that this amounts to must be among what the first random scenarios show.

use std::collections::BTreeSet;
use std::time::Duration;

use quadrant_policy::{
    Action, Event, Limits, ModelTerms, Policy, RequestRate, Step, StepOutcome, TenantTerms,
};
use quadrant_sim::{Scenario, Scheduler, run_with};
use quadrant_types::{
    Ending, Error, ErrorCode, LaneId, ModelId, Objective, Request, RequestId, ShapeId, StepId, Time, Work,
};

const SEEDS: u64 = 200;

type LimitsFn = fn(&mut Limits);
type EventFn = fn(&mut Event);
type ActionsFn = fn(&mut Vec<Action>, &mut Vec<Action>);
type DeadlineFn = fn(Option<Time>) -> Option<Time>;

/// The invariant that must be found broken, and the tampering.
type Case<F> = (&'static str, F);

/// What is done to the scheduler; what is not named is left alone.
#[derive(Clone, Copy)]
struct Tampering {
    limits: LimitsFn,
    event: EventFn,
    /// May keep actions back, in the second list, and give them out later.
    actions: ActionsFn,
    deadline: DeadlineFn,
}

const HONEST: Tampering =
    Tampering { limits: |_| {}, event: |_| {}, actions: |_, _| {}, deadline: |deadline| deadline };

struct Mutant {
    policy: Policy,
    kept: Vec<Action>,
    tampering: Tampering,
}

impl Scheduler for Mutant {
    fn on_event(&mut self, now: Time, mut event: Event, actions: &mut Vec<Action>) {
        (self.tampering.event)(&mut event);
        self.policy.on_event(now, event, actions);
        (self.tampering.actions)(actions, &mut self.kept);
    }

    fn next_deadline(&self) -> Option<Time> {
        (self.tampering.deadline)(self.policy.next_deadline())
    }

    fn violated_invariant(&self) -> Option<&'static str> {
        None // The policy's own books are right; what matters is whether ours notice.
    }
}

/// The invariants that the first seeds find broken.
fn found(tampering: Tampering) -> BTreeSet<&'static str> {
    let violation = |seed| {
        let scenario = Scenario::random(seed);
        let mut limits = scenario.limits;
        (tampering.limits)(&mut limits);
        let policy = Policy::new(scenario.lanes.clone(), limits, scenario.discipline);
        run_with(&scenario, seed, Mutant { policy, kept: Vec::new(), tampering }).err()
    };
    (0..SEEDS).filter_map(violation).map(|violation| violation.invariant).collect()
}

fn check(invariant: &str, tampering: Tampering) {
    let found = found(tampering);
    assert!(found.contains(invariant), "`{invariant}` is not among {found:?}");
}

fn is_end(action: &Action) -> bool {
    matches!(action, Action::End(..))
}

fn is_run(action: &Action) -> bool {
    matches!(action, Action::Run(_))
}

fn change_runs(actions: &mut [Action], change: impl Fn(&mut Step)) {
    for action in actions {
        if let Action::Run(step) = action {
            change(step);
        }
    }
}

/// Steps of one model that begin together become one.
fn merge_runs(actions: &mut Vec<Action>) {
    let mut first: Option<Step> = None;
    actions.retain(|action| {
        let Action::Run(step) = action else { return true };
        match &mut first {
            None => first = Some(step.clone()),
            Some(first) if first.model == step.model => {
                first.requests.extend_from_slice(&step.requests);
                first.rows += step.rows;
            }
            Some(_) => return true,
        }
        false
    });
    actions.extend(first.map(Action::Run));
}

/// Whether these actions end the only request of this step.
fn is_over(run: &Action, actions: &[Action]) -> bool {
    let Action::Run(step) = run else { return false };
    let ends = |id| actions.iter().any(|action| matches!(action, Action::End(ended, _) if *ended == id));
    step.requests.len() == 1 && ends(step.requests[0])
}

/// Asks for these once more.
fn repeat(actions: &mut Vec<Action>, which: impl Fn(&Action) -> bool) {
    actions.extend(actions.clone().into_iter().filter(which));
}

fn change_terms(event: &mut Event, change: impl Fn(&mut ModelTerms)) {
    if let Event::ModelUp(_, terms) = event {
        change(terms);
    }
}

fn change_tenants(event: &mut Event, change: impl Fn(&mut TenantTerms)) {
    if let Event::Tenant(_, Some(terms)) = event {
        change(terms);
    }
}

fn change_arrivals(event: &mut Event, change: impl Fn(&mut Request)) {
    if let Event::Arrived(request) = event {
        change(request);
    }
}

#[test]
fn an_untouched_scheduler_breaks_nothing() {
    assert_eq!(found(HONEST), BTreeSet::new());
}

#[test]
fn wrong_iterations_are_found() {
    let table: [Case<ActionsFn>; 3] = [
        ("a step says what it computes of each sequence", |actions, _| {
            change_runs(actions, |step| drop(step.slices.pop()));
        }),
        ("of every sequence something is computed", |actions, _| {
            change_runs(actions, |step| step.slices.iter_mut().for_each(|slice| slice.tokens = 0));
        }),
        ("a step's rows are the sum of its requests' rows", |actions, _| {
            change_runs(actions, |step| step.slices.iter_mut().for_each(|slice| slice.tokens += 1));
        }),
    ];
    for (invariant, actions) in table {
        check(invariant, Tampering { actions, ..HONEST });
    }
}

#[test]
fn wrong_endings_are_found() {
    let table: [Case<ActionsFn>; 8] = [
        ("what is over is said to be over at once", |actions, _| actions.retain(|action| !is_end(action))),
        ("every accepted request ends exactly once", |actions, _| {
            actions.extend(actions.clone().into_iter().filter(is_end));
        }),
        ("no action for an unknown request", |actions, _| {
            actions.push(Action::End(RequestId(1 << 40), Ending::Completed));
        }),
        ("every ending has its cause", |actions, _| {
            for action in actions {
                if let Action::End(_, ending) = action {
                    *ending = Ending::Completed;
                }
            }
        }),
        ("`Drained` comes once, and after `Drain`", |actions, _| actions.push(Action::Drained)),
        ("`Drained` comes when nothing is left", |actions, _| actions.retain(|a| *a != Action::Drained)),
        ("no action for an unknown step", |actions, _| {
            actions.push(Action::LaneStalled(LaneId(0), StepId(1 << 40)));
        }),
        ("a lane recovers when its stalled step ends", |actions, _| {
            actions.push(Action::LaneRecovered(LaneId(0)));
        }),
    ];
    for (invariant, actions) in table {
        check(invariant, Tampering { actions, ..HONEST });
    }
}

#[test]
fn wrong_steps_are_found() {
    let table: [Case<ActionsFn>; 11] = [
        ("a step's number is new", |actions, _| {
            actions.extend(actions.clone().into_iter().filter(is_run));
        }),
        ("a request runs in one step at a time", |actions, _| {
            let mut again: Vec<_> = actions.iter().filter(|action| is_run(action)).cloned().collect();
            change_runs(&mut again, |step| {
                step.id = StepId(step.id.0 + (1 << 40));
                step.lane = LaneId((step.lane.0 + 1) % 4);
            });
            actions.extend(again);
        }),
        ("running steps of one class share no core", |actions, _| {
            change_runs(actions, |step| step.lane = LaneId(0))
        }),
        ("a step runs on a lane of its model's width", |actions, _| {
            change_runs(actions, |step| step.lane = LaneId(0));
        }),
        ("a step runs on a lane that there is", |actions, _| {
            change_runs(actions, |step| step.lane = LaneId(99));
        }),
        ("a step's rows are the sum of its requests' rows", |actions, _| {
            change_runs(actions, |step| step.rows += 1);
        }),
        ("a step has requests", |actions, _| change_runs(actions, |step| step.requests.clear())),
        ("a step is of a model that is loaded", |actions, _| {
            change_runs(actions, |step| step.model = ModelId(99));
        }),
        ("a step's requests are of one model", |actions, _| {
            change_runs(actions, |step| step.model = ModelId(step.model.0 ^ 1));
        }),
        ("a request of a failed batch runs alone", |actions, _| merge_runs(actions)),
        ("no step for a request after its end", |actions, kept| {
            kept.extend(actions.iter().filter(|action| is_run(action)).cloned());
            actions.extend(kept.iter().filter(|run| is_over(run, actions)).cloned().collect::<Vec<_>>());
            change_runs(kept, |step| step.id = StepId(step.id.0 + (1 << 40)));
        }),
    ];
    for (invariant, actions) in table {
        check(invariant, Tampering { actions, ..HONEST });
    }
}

#[test]
fn wrong_loads_are_found() {
    let table: [Case<ActionsFn>; 3] = [
        ("not too many models are loaded at the same time", |actions, _| {
            repeat(actions, |action| matches!(action, Action::Load(_)));
        }),
        ("only resident models are unloaded", |actions, _| {
            repeat(actions, |action| matches!(action, Action::Unload(_)));
        }),
        ("no model is unloaded that has work", |actions, _| {
            let run = actions.iter().find(|action| is_run(action)).cloned();
            if let Some(Action::Run(step)) = run {
                actions.push(Action::Unload(step.model));
            }
        }),
    ];
    for (invariant, actions) in table {
        check(invariant, Tampering { actions, ..HONEST });
    }
}

#[test]
fn a_scheduler_that_was_told_wrong_is_found() {
    let table: [Case<EventFn>; 12] = [
        ("a step has at most `rows_max` rows", |event| change_terms(event, |terms| terms.rows_max *= 2)),
        ("a step runs on a lane of its model's width", |event| {
            change_terms(event, |terms| terms.widths = vec![1])
        }),
        ("queue and byte limits hold", |event| change_terms(event, |terms| terms.queue_max *= 2)),
        ("no request waits while a lane for it idles", |event| {
            change_terms(event, |terms| terms.delay_max = terms.delay_max * 2 + Duration::from_millis(1));
        }),
        ("a step's requests are of one shape", |event| {
            change_arrivals(event, |request| {
                let Work::Once { shape, .. } = &mut request.work else { return };
                *shape = ShapeId(0);
            });
        }),
        ("the next deadline is not after an expiry", |event| {
            change_arrivals(event, |request| request.objective = Objective::BestEffort);
        }),
        ("every ending has its cause", |event| {
            change_arrivals(event, |request| request.objective = Objective::EndBy(request.arrived));
        }),
        ("what is over is said to be over at once", |event| {
            if matches!(event, Event::Left(_) | Event::ModelDown(_)) {
                *event = Event::Tick;
            }
        }),
        ("nothing is accepted for a model that is not loaded", |event| {
            if matches!(event, Event::ModelDown(_)) {
                *event = Event::Tick;
            }
        }),
        ("nothing is accepted after `Drain`", |event| {
            if *event == Event::Drain {
                *event = Event::Tick;
            }
        }),
        ("every ending has its cause", |event| {
            if let Event::Ended(report) = event {
                report.outcome = StepOutcome::Completed;
            }
        }),
        ("every ending has its cause", |event| {
            if let Event::Ended(report) = event {
                report.outcome = StepOutcome::Failed(Error::new(ErrorCode::Internal, "not so"));
            }
        }),
    ];
    for (invariant, event) in table {
        check(invariant, Tampering { event, ..HONEST });
    }
}

#[test]
fn wrong_quotas_are_found() {
    let used_up = "who is let in has not used its tenant's quota up";
    let table: [Case<EventFn>; 6] = [
        (used_up, |event| change_tenants(event, |terms| terms.requests = None)),
        (used_up, |event| change_tenants(event, |terms| terms.device_ppm = None)),
        (used_up, |event| change_tenants(event, |terms| terms.concurrency_max = None)),
        (used_up, |event| change_tenants(event, |terms| terms.bytes_in_max = None)),
        ("every ending has its cause", |event| {
            change_tenants(event, |terms| {
                terms.requests = terms.requests.map(|rate| RequestRate { every: rate.every * 2, ..rate });
            });
        }),
        ("every ending has its cause", |event| {
            if matches!(event, Event::Tenant(_, None)) {
                *event = Event::Tick;
            }
        }),
    ];
    for (invariant, event) in table {
        check(invariant, Tampering { event, ..HONEST });
    }
}

#[test]
fn wrong_limits_and_wrong_deadlines_are_found() {
    let limits: [Case<LimitsFn>; 6] = [
        ("queue and byte limits hold", |limits| limits.queued_requests_max *= 2),
        ("queue and byte limits hold", |limits| limits.bytes_in_max *= 2),
        ("models stay within the budget", |limits| limits.memory.bytes *= 2),
        ("the next deadline is not after an expiry", |limits| limits.wait_max *= 2),
        ("the next deadline is not after a stall", |limits| limits.stall_floor *= 2),
        ("a lane is stalled once its step is far over its prediction", |limits| limits.stall_floor /= 2),
    ];
    for (invariant, limits) in limits {
        check(invariant, Tampering { limits, ..HONEST });
    }
    let deadlines: [Case<DeadlineFn>; 3] = [
        ("the next deadline is not after an expiry", |_| None),
        ("nothing that is due in the past remains", |_| Some(Time::ZERO)),
        ("the next deadline is not after an expiry", |deadline| {
            deadline.map(|time| time + Duration::from_nanos(1))
        }),
    ];
    for (invariant, deadline) in deadlines {
        check(invariant, Tampering { deadline, ..HONEST });
    }
}
