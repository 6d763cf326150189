//! What a node is given that it must not accept: each has a clear answer, and loses nothing. All on the real program.
//!
//! It is taken from where the variable `CONCLAVE_BIN` says, else from a debug build of the workspace.

mod directories;
mod disk_full;
mod flags;
mod garbage;
mod log_files;
mod ports;
mod requests;
