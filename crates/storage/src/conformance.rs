//! What every implementation of a trait of this crate must pass. Public, so that engines of others can be held to it too.
//!
//! A suite panics at the first violation, with what was expected.

mod log_store;
mod state_store;

pub use log_store::{LogBoot, LogContents, log_contents, log_store};
pub use state_store::state_store;
