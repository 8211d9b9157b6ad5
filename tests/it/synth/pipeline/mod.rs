//! `octant synth` against a scripted server: what it makes, rejects, repeats and resumes.

mod children;
mod estimates;
mod full_servers;
mod kinds;
mod recipes;
mod rejects;
mod resume;
pub mod script;
mod stages;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use octant::synth::{RunOptions, Stop, SynthError, run};
use serde_json::Value;
use tempfile::TempDir;

use script::{Call, Reply, ScriptServer};

/// A recipe with every stage that asks a model. `SERVER` stands for the server's address.
const RECIPE: &str = r#"
name = "Test"
seed = 7

[roles.prompt_writer]
endpoint = "SERVER/v1"
model = "writer"
concurrency = CONCURRENCY
attempts = 1
sampling = { temperature = 0.5 }

[roles.user]
endpoint = "SERVER"
model = "user"
concurrency = CONCURRENCY
attempts = 1

[[roles.responders]]
endpoint = "SERVER"
model = "weak"
concurrency = CONCURRENCY
attempts = 1

[[roles.responders]]
endpoint = "SERVER"
model = "strong"
concurrency = CONCURRENCY
attempts = 1

[roles.judge]
endpoint = "SERVER"
model = "judge"
concurrency = CONCURRENCY
attempts = 1

[topics]
generate = 2
given = ["Given"]
subtopics = 1

[open_questions]
per_topic = 2

[mathematics]
keywords = ["fractions"]
generate = 1
per_keyword = 1

[refine]
per_prompt = 1

[dialogues]
turns = 2
most = 2

[responses]
per_responder = 1
two_turn = true

[reward]
weights = { helpfulness = 1.0, verbosity = -0.5 }
threshold = 1.0
"#;

/// A run in a folder of its own.
pub struct Setup {
    folder: TempDir,
    recipe: String,
    restart: bool,
    concurrency: usize,
}

/// The outcome of a run.
pub struct Outcome {
    pub result: Result<(), SynthError>,
    /// The printed text.
    pub said: String,
}

impl Outcome {
    /// The printed text of a run without an error.
    pub fn said(self) -> String {
        self.result.unwrap();
        self.said
    }

    pub fn error(self) -> String {
        self.result.unwrap_err().to_string()
    }
}

impl Setup {
    pub fn new() -> Self {
        Self::of(RECIPE)
    }

    pub fn of(recipe: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, recipe: recipe.to_owned(), restart: false, concurrency: 1 }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Replaces a part of the recipe.
    pub fn replace(&mut self, part: &str, by: &str) {
        assert!(self.recipe.contains(part), "{part}");
        self.recipe = self.recipe.replace(part, by);
    }

    pub fn run(&self, server: &ScriptServer) -> Outcome {
        self.run_with(&format!("http://{}", server.address), false)
    }

    /// Writes the recipe for this server.
    fn write(&self, server: &str) -> PathBuf {
        let path = self.path().join("recipe.toml");
        let concurrency = self.concurrency.to_string();
        let text = self.recipe.replace("SERVER", server).replace("CONCURRENCY", &concurrency);
        fs::write(&path, text).unwrap();
        path
    }

    /// `octant synth` as a process.
    pub fn spawn(&self, server: &str) -> Child {
        self.command(server).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    pub fn command(&self, server: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_octant"));
        command.env_clear().arg("synth").arg(self.write(server)).arg("--out").arg(self.path().join("out"));
        command
    }

    pub fn run_with(&self, server: &str, dry_run: bool) -> Outcome {
        let path = self.write(server);
        let said = Mutex::new(String::new());
        let result = run(&RunOptions {
            recipe: &path,
            folder: &self.path().join("out"),
            binary: Path::new(env!("CARGO_BIN_EXE_octant")),
            restart: self.restart,
            dry_run,
            say: &|text| said.lock().unwrap().push_str(text),
            stop: &Stop::default(),
        });
        Outcome { result, said: said.into_inner().unwrap() }
    }

    /// Writes a file beside the recipe, with a row for each value.
    pub fn rows(&self, name: &str, rows: &[Value]) {
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(self.path().join(name), text).unwrap();
    }

    /// The lines of a file of the run.
    pub fn lines(&self, file: &str) -> Vec<Value> {
        let text =
            fs::read_to_string(self.path().join("out").join(file)).unwrap_or_else(|_| panic!("{file}"));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The files of records and rejects, and the exports, by their names.
    pub fn files(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        for folder in ["out", "out/exports"] {
            for entry in fs::read_dir(self.path().join(folder)).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|ending| ending == "jsonl") {
                    let name = path.strip_prefix(self.path()).unwrap().display().to_string();
                    files.insert(name, fs::read_to_string(&path).unwrap());
                }
            }
        }
        files
    }

    /// How often each reason stands in a file of rejects.
    pub fn reasons(&self, stage: &str) -> BTreeMap<String, usize> {
        let mut reasons = BTreeMap::new();
        for reject in self.lines(&format!("{stage}.rejects.jsonl")) {
            *reasons.entry(reject["reason"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        reasons
    }
}

/// The usual answers but for some requests.
pub fn usual_but(other: impl Fn(&Call) -> Option<Reply> + Send + Sync + 'static) -> ScriptServer {
    ScriptServer::start(move |call| other(call).unwrap_or_else(|| script::usual(call)))
}
