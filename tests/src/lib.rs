//! What the real-process tests share: a cluster with its links in our hands, clients that record what they are told, and the
//! checks that follow; and the decoders that take bytes from outside.

#![forbid(unsafe_code)]

pub mod decoders;
pub mod load;
pub mod proxy;
pub mod solo;
pub mod trial;
pub mod watcher;
