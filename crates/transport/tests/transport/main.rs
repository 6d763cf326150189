//! What every transport keeps, and what each keeps of its own.

mod codec;
mod conformance;
mod inbox;
mod memory;
mod tcp;
