//! The log as a whole: on a real directory, and on a disk that loses power.

mod suite;
