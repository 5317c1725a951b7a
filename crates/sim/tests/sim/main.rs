//! The scheduler in virtual time: random scenarios, scenarios by hand, and checkers that fire.

mod by_hand;
mod mutants;
mod random;
