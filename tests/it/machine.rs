//! Limits of the machine, and servers under them.

mod limits;
mod refusals;
mod tree;
