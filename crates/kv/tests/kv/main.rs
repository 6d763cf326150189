//! The store against a deliberately dumb twin, and etcd's facts one by one.

mod durability;
mod facts;
mod garbage;
mod harness;
mod model;
mod properties;
