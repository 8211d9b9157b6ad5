//! Limits of the machine, and servers under them.

mod cpus;
mod limits;
mod refusals;
mod tree;
