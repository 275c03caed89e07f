//! The state machines with each other and against strangers, in memory.
#![allow(missing_docs, unreachable_pub)]

mod bounds;
mod chain;
mod classes;
mod door;
mod enumerate;
mod hostile;
mod loss;
#[allow(dead_code)]
mod sim;
mod trust;
