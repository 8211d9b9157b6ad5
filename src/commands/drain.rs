//! `octant drain`: begins the shutdown of a running server by its admin port, for a supervisor that has no other
//! client at hand.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;

use anyhow::Context;

use crate::config::DrainArgs;

/// Posts the drain and shows the answer, which comes when no request is open any more. 0 if the server says so.
pub fn run(args: &DrainArgs) -> anyhow::Result<ExitCode> {
    let DrainArgs { admin, wait } = args;
    // Every address that the name has is tried.
    let mut stream = TcpStream::connect(admin).with_context(|| format!("cannot reach {admin}"))?;
    let head = format!(
        "POST /admin/drain?wait={wait} HTTP/1.1\r\nhost: {admin}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).context("the server hung up")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the server hung up")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the server hung up without an answer")?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200 "), "{admin} says {body}");
    println!("{body}");
    Ok(ExitCode::SUCCESS)
}
