//! The log as a whole: on a real directory, and on a disk that loses power.

mod damage;
mod fault_disk;
mod power_cut;
mod refusal;
mod space;
mod suite;
mod workload;
