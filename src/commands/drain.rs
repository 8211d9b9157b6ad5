//! `octant drain`: begins the shutdown of a running server through its admin port, for supervisors without an
//! HTTP client.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;

use anyhow::Context;

use crate::config::DrainArgs;
use crate::stdio::results::print_line;

/// Posts the drain and prints the answer. With `--wait true` the answer comes when all requests have ended.
pub fn run(args: &DrainArgs) -> anyhow::Result<ExitCode> {
    let DrainArgs { admin, wait } = args;
    // Tries every address of the host name.
    let mut stream = TcpStream::connect(admin).with_context(|| format!("cannot reach {admin}"))?;
    let head = format!(
        "POST /admin/drain?wait={wait} HTTP/1.1\r\nhost: {admin}\r\ncontent-length: 0\r\n\
         connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).context("the server closed the connection")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the server closed the connection")?;
    let (head, body) =
        answer.split_once("\r\n\r\n").context("the server closed the connection without an answer")?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200 "), "{admin} answered: {body}");
    print_line!("{body}")?;
    Ok(ExitCode::SUCCESS)
}
