//! Limits of the machine: what they are, and what a server does under them.

mod limits;
mod refusals;
mod tree;
