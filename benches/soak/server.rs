//! A server in a separate process. The operating system counts the process's memory and file descriptors.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A process of `octant serve --device simulate`, killed when dropped.
pub struct Server {
    child: Child,
    /// Main port: the API and probes.
    pub main: SocketAddr,
    /// Health port: probes only.
    pub health: SocketAddr,
    _model: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_by_itself = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Folder of the tokenizer.
pub fn tokenizer() -> std::path::PathBuf {
    Path::new(ROOT).join("tests/data/text/byte_level")
}

impl Server {
    /// Starts a server with these further arguments, and waits until it is ready.
    pub fn start(more: &[&str]) -> Self {
        let model = tempfile::tempdir().expect("a folder can be made");
        let config = Path::new(ROOT).join("tests/data/golden/nemotron/config.json");
        std::fs::copy(config, model.path().join("config.json")).expect("it can be copied");
        for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
            std::fs::copy(tokenizer().join(name), model.path().join(name)).expect("it can be copied");
        }
        let path = model.path().to_string_lossy();
        let config = format!("{ROOT}/models/nemotron-4-340b-instruct");
        let args = ["serve", "--model", &path, "--served-model-name", "soak", "--port", "0"];
        let simulate = ["--health-port", "0", "--device", "simulate", "--simulate-config", &config];
        let mut child = Command::new(env!("CARGO_BIN_EXE_octant"))
            .args(args)
            .args(simulate)
            .args(more)
            .env_clear()
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server is built");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let (mut main, mut health) = (None, None);
        while main.is_none() {
            let line = lines.next().expect("the server prints that it is ready").expect("it prints text");
            let Some((name, address)) = line.split_once("http://") else { continue };
            let address = address.trim().parse().expect("an address");
            if name.contains("health ") {
                health = Some(address);
            } else if name.contains("ready in") {
                main = Some(address);
            }
        }
        // A thread reads the rest of the pipe and prints it, so that the report has the server's warnings.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("server: {line}")));
        let (main, health) = (main.expect("just found"), health.expect("printed before it is ready"));
        Self { child, main, health, _model: model }
    }

    /// Returns true while the process runs.
    pub fn lives(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Resident memory in MiB.
    pub fn resident(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        kib.unwrap_or(f64::NAN) / 1024.0
    }

    /// Number of open file descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
    }
}

/// Slope in MiB per minute, by least squares over the second half of samples of (seconds, MiB).
pub fn slope(samples: &[(f64, f64)]) -> f64 {
    let half = &samples[samples.len() / 2..];
    let n = half.len() as f64;
    let (x, y) = half.iter().fold((0.0, 0.0), |(x, y), sample| (x + sample.0 / n, y + sample.1 / n));
    let (up, down) = half.iter().fold((0.0, 0.0), |(up, down), sample| {
        (up + (sample.0 - x) * (sample.1 - y), down + (sample.0 - x).powi(2))
    });
    up / down * 60.0
}
