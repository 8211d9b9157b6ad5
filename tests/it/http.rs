//! The server on loopback, over the real engine and a fake executor, spoken to by a client that shows every byte.

mod abort;
mod chat;
mod client;
mod completions;
mod context;
mod door;
mod drain;
mod failures;
mod house;
mod limits;
mod routes;
mod streams;
