//! Effects that wait for their turn.
//!
//! A driver executes one effect after another, and one of them may take long: a disk may
//! need seconds. A withdrawal does not wait for that: [`Agent::fence`] gives a route to be
//! put in place at once, and [`Backlog::overtaken_by`] drops what it makes untrue, which
//! is an older route of the model that was still to be put in place, and the receipt
//! for it.
//!
//! [`Agent::fence`]: crate::agent::Agent::fence

use std::collections::VecDeque;

use rollcall_shared::wire::FromAgent;

use crate::effect::Effect;
use crate::route::Route;

/// Effects that wait, in the order of their inputs.
#[derive(Debug, Default)]
pub struct Backlog(VecDeque<Effect>);

impl Backlog {
    /// Adds the effects of an input. An input is handled only when nothing waits.
    pub fn add(&mut self, effects: Vec<Effect>) {
        assert!(self.0.is_empty(), "an input overtook effects");
        self.0.extend(effects);
    }

    /// Drops older routes of the model that has `route` now, and the words about them.
    /// Returns the newest that was dropped: one that nobody was ever served by.
    pub fn overtaken_by(&mut self, route: &Route) -> Option<Route> {
        let mut undone = None;
        self.0.retain(|effect| match effect {
            Effect::Swap(older) if older.model == route.model => {
                undone = Some(older.clone());
                false
            }
            Effect::Send(FromAgent::Receipt(receipt)) => receipt.model != route.model,
            Effect::Swap(_)
            | Effect::Send(_)
            | Effect::Persist(_)
            | Effect::Prepare { .. }
            | Effect::Unload { .. }
            | Effect::Pin(_) => true,
        });
        undone
    }

    /// The next effect to execute.
    pub fn pop(&mut self) -> Option<Effect> {
        self.0.pop_front()
    }

    /// The effect that [`Self::pop`] would give.
    #[must_use]
    pub fn peek(&self) -> Option<&Effect> {
        self.0.front()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::ids::{Generation, ModelName};
    use rollcall_shared::report::Receipt;

    use super::*;
    use crate::agent::fixtures::{model, version};
    use crate::effect::DurableState;

    fn route(name: &ModelName, generation: u64) -> Route {
        Route {
            model: name.clone(),
            generation: Generation(generation),
            stable: Some(version(1)),
            candidate: None,
        }
    }

    fn swap(name: &ModelName, generation: u64) -> Effect {
        Effect::Swap(route(name, generation))
    }

    fn receipt(name: &ModelName, generation: u64) -> Effect {
        Effect::Send(FromAgent::Receipt(Receipt {
            model: name.clone(),
            generation: Generation(generation),
            serving: Vec::new(),
        }))
    }

    fn persist() -> Effect {
        Effect::Persist(DurableState::default())
    }

    fn all(mut backlog: Backlog) -> Vec<Effect> {
        std::iter::from_fn(|| backlog.pop()).collect()
    }

    #[test]
    fn what_a_withdrawal_makes_untrue_is_dropped_and_everything_else_stays() {
        let (digits, wine) = (model(), ModelName::new("wine").unwrap());
        let mut backlog = Backlog::default();
        backlog.add(vec![
            persist(),
            swap(&digits, 5),
            swap(&wine, 2),
            receipt(&digits, 5),
            receipt(&wine, 2),
        ]);
        let undone = backlog.overtaken_by(&route(&digits, 6));
        assert_eq!(undone, Some(route(&digits, 5)));
        let expected = [persist(), swap(&wine, 2), receipt(&wine, 2)];
        assert_eq!(all(backlog), expected);
    }
}
