//! The servers of roles: remote ones, and local models as child processes (`octant serve`).
//!
//! A child runs while a stage needs its model and stops before another model starts, since two large models
//! do not fit together. Roles of one stage run side by side.

use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::endpoint::Endpoint;
use super::error::SynthError;
use super::recipe::{Recipe, Role};
use crate::hub::{self, AgentOptions};

/// The model's name in requests to a child process.
const LOCAL: &str = "local";
/// Interval of looks whether a child process is ready, or has ended.
const POLL: Duration = Duration::from_millis(50);
/// Time for a child process to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(30);
/// Settings of `octant serve` that must not reach the child process by the environment.
const OWN_VARIABLES: [&str; 16] = [
    // Its file may have any setting.
    "OCTANT_CONFIG",
    "OCTANT_MODEL",
    "OCTANT_SERVED_MODEL_NAME",
    "OCTANT_HOST",
    "OCTANT_PORT",
    "OCTANT_HEALTH_PORT",
    "OCTANT_ADMIN_HOST",
    "OCTANT_ADMIN_PORT",
    "OCTANT_ALLOWED_HOSTS",
    "OCTANT_ALLOWED_ORIGINS",
    "OCTANT_API_KEY",
    "OCTANT_API_KEYS",
    "OCTANT_REQUIRE_AUTH_FOR_METRICS",
    "OCTANT_MAX_TTFT",
    "OCTANT_DATA_DIR",
    // The children of a run would write the same file.
    "OCTANT_RECORD",
];
/// Bytes of a child's log in an error.
const LOG_END: usize = 600;

/// Ends a run from another thread.
#[derive(Debug, Default)]
pub struct Stop {
    pub(super) flag: AtomicBool,
    children: Mutex<Vec<Running>>,
}

impl Stop {
    /// Begins no more requests and ends the child processes.
    pub fn stop(&self) {
        self.flag.store(true, Ordering::Relaxed);
        self.children().clear();
    }

    fn children(&self) -> MutexGuard<'_, Vec<Running>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A role by its place in the recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    PromptWriter,
    User,
    Responder(usize),
    Judge,
}

impl Who {
    /// The role's key in the recipe.
    pub(super) fn key(self) -> String {
        match self {
            Self::PromptWriter => "roles.prompt_writer".to_owned(),
            Self::User => "roles.user".to_owned(),
            Self::Responder(number) => format!("roles.responders[{number}]"),
            Self::Judge => "roles.judge".to_owned(),
        }
    }

    /// The role, which the recipe's check has found where a stage needs it.
    pub(super) fn role(self, recipe: &Recipe) -> Result<&Role, SynthError> {
        let roles = &recipe.roles;
        let role = match self {
            Self::PromptWriter => roles.prompt_writer.as_ref(),
            Self::User => roles.user.as_ref(),
            Self::Responder(number) => roles.responders.get(number),
            Self::Judge => roles.judge.as_ref(),
        };
        role.ok_or_else(|| SynthError::Endpoint {
            role: self.key(),
            message: "expected this role".to_owned(),
        })
    }
}

/// A child process.
#[derive(Debug)]
struct Running {
    model: String,
    args: Vec<String>,
    address: LocalAddress,
    child: Child,
}

/// The address of a child process.
#[derive(Debug, Clone)]
struct LocalAddress {
    base: String,
    log: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        }
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < GRACE {
            sleep(POLL);
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            _ = self.child.kill();
        }
        _ = self.child.wait();
    }
}

/// The servers of a run.
pub(super) struct Servers<'a> {
    pub(super) recipe: &'a Recipe,
    /// The recipe's folder, where relative paths begin.
    pub(super) recipe_folder: &'a Path,
    /// The folder of logs.
    pub(super) folder: &'a Path,
    /// The binary of child processes.
    pub(super) binary: &'a Path,
    pub(super) stop: &'a Stop,
}

impl Servers<'_> {
    /// The endpoints of roles that a stage needs at the same time. Child processes of other models stop.
    pub(super) fn open(&self, roles: &[Who]) -> Result<Vec<Endpoint>, SynthError> {
        let mut wanted = Vec::new();
        for who in roles {
            wanted.push((*who, who.role(self.recipe)?));
        }
        self.stop.children().retain(|running| {
            wanted.iter().any(|(_, role)| role.endpoint.is_none() && is_same(running, role))
        });
        let endpoint = |(who, role): &(Who, &Role)| {
            let name = format!("{} ({})", who.key(), role.model);
            match &role.endpoint {
                Some(base) => Endpoint::new(&name, role, base, role.model.clone()),
                None => {
                    let LocalAddress { base, log } = self.local(&name, role)?;
                    let name = format!("{name}, log {}", log.display());
                    Endpoint::new(&name, role, &base, LOCAL.to_owned())
                }
            }
        };
        wanted.iter().map(endpoint).collect()
    }

    /// Ends all child processes.
    pub(super) fn close(&self) {
        self.stop.children().clear();
    }

    /// The address of a child process, which is started if none serves the model.
    fn local(&self, name: &str, role: &Role) -> Result<LocalAddress, SynthError> {
        let running = self.stop.children().iter().find(|running| is_same(running, role)).map(address_of);
        if let Some(address) = running {
            return Ok(address);
        }
        let wrong = |message: String| SynthError::Endpoint { role: name.to_owned(), message };
        let free = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
        let port = free.map_err(|error| wrong(format!("no free port: {error}")))?.port();
        let log = self.folder.join(format!("server-{port}.log"));
        let out = File::create(&log).map_err(SynthError::file(&log))?;
        let err = out.try_clone().map_err(SynthError::file(&log))?;
        let model = match self.recipe_folder.join(&role.model) {
            path if path.exists() => path,
            _ => PathBuf::from(&role.model),
        };
        let address = LocalAddress { base: format!("http://127.0.0.1:{port}"), log };
        let mut command = Command::new(self.binary);
        command.arg("serve").arg(&model).args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command
            .args(["--served-model-name", LOCAL, "--drain-grace", "0", "--stop-with-stdin", "true"])
            .args(&role.serve_args);
        for variable in OWN_VARIABLES {
            command.env_remove(variable);
        }
        // The pipe's other end closes with this process, even if it is killed, and the child then ends.
        command.stdin(Stdio::piped()).stdout(out).stderr(err);
        {
            // Under the lock, so that a stop ends this child too or comes before it.
            let mut children = self.stop.children();
            if self.stop.flag.load(Ordering::Relaxed) {
                return Err(SynthError::Interrupted);
            }
            let child = command.spawn();
            let child = child.map_err(|error| wrong(format!("cannot start octant serve: {error}")))?;
            let (model, args) = (role.model.clone(), role.serve_args.clone());
            children.push(Running { model, args, address: address.clone(), child });
        }
        tracing::info!("{name}: octant serve starts on port {port}; its log is {}", address.log.display());
        self.until_ready(&address).map_err(wrong_or(name))?;
        Ok(address)
    }

    fn until_ready(&self, address: &LocalAddress) -> Result<(), NotReady> {
        let options = AgentOptions { timeout: Duration::from_secs(5), connections: None, is_direct: true };
        let agent = hub::agent(&options).map_err(|error| NotReady::Failed(error.to_string()))?;
        loop {
            if self.stop.flag.load(Ordering::Relaxed) {
                return Err(NotReady::Interrupted);
            }
            let ended = {
                let mut children = self.stop.children();
                let running = children.iter_mut().find(|running| running.address.base == address.base);
                running.is_none_or(|running| !matches!(running.child.try_wait(), Ok(None)))
            };
            if ended {
                return Err(NotReady::Failed(format!("octant serve ended: {}", log_end(&address.log))));
            }
            match agent.get(format!("{}/health/ready", address.base)).call() {
                Ok(response) if response.status().as_u16() == 200 => return Ok(()),
                _ => sleep(POLL),
            }
        }
    }
}

/// The reason why a child process does not answer.
enum NotReady {
    Failed(String),
    Interrupted,
}

fn wrong_or(name: &str) -> impl FnOnce(NotReady) -> SynthError {
    let role = name.to_owned();
    move |error| match error {
        NotReady::Failed(message) => SynthError::Endpoint { role, message },
        NotReady::Interrupted => SynthError::Interrupted,
    }
}

fn is_same(running: &Running, role: &Role) -> bool {
    running.model == role.model && running.args == role.serve_args
}

fn address_of(running: &Running) -> LocalAddress {
    running.address.clone()
}

/// The last lines of a log, on one line.
fn log_end(log: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(log) {
        _ = file.read_to_end(&mut bytes);
    }
    let end =
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_END)..]).trim().replace('\n', " | ");
    if end.is_empty() { log.display().to_string() } else { end }
}
