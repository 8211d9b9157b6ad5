//! A whole run: the stages in order, the scores before anything is dropped, exports and report.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{FlockOperation, flock};

use super::error::SynthError;
use super::estimate::estimate;
use super::outputs;
use super::recipe::Recipe;
use super::report::score_table;
use super::samples::Products;
use super::servers::{Servers, Stop};
use super::stages::{self, Scored};
use super::workers::Context;

/// Settings of a run beside the recipe.
pub struct RunOptions<'a> {
    /// The recipe's file.
    pub recipe: &'a Path,
    /// The folder of all files.
    pub folder: &'a Path,
    /// The binary that serves local models.
    pub binary: &'a Path,
    /// Whether stages that were made with other settings are made again.
    pub restart: bool,
    /// Whether only the estimate is made.
    pub dry_run: bool,
    /// Prints a text of the run.
    pub say: &'a (dyn Fn(&str) + Sync),
    /// Ends the run from another thread.
    pub stop: &'a Stop,
}

/// Runs a recipe, or continues a run that was interrupted.
///
/// # Errors
/// The recipe, a file or an endpoint is wrong. What was made until then is kept.
pub fn run(options: &RunOptions<'_>) -> Result<(), SynthError> {
    let recipe = Recipe::read(options.recipe)?;
    let recipe_folder = match options.recipe.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    if options.dry_run {
        (options.say)(&estimate(&recipe, &recipe_folder, options.folder)?);
        return Ok(());
    }
    std::fs::create_dir_all(options.folder).map_err(SynthError::file(options.folder))?;
    let _lock = lock(options.folder)?;
    let servers = Servers {
        recipe: &recipe,
        recipe_folder: &recipe_folder,
        folder: options.folder,
        binary: options.binary,
        stop: options.stop,
    };
    let context = Context {
        recipe: &recipe,
        recipe_folder: recipe_folder.clone(),
        folder: options.folder,
        servers,
        restart: options.restart,
        say: options.say,
        summaries: Mutex::default(),
    };
    let outcome = all_stages(&context);
    context.servers.close();
    outcome
}

fn all_stages(context: &Context<'_>) -> Result<(), SynthError> {
    let topics = stages::topics(context)?;
    let topics = stages::subtopics(context, topics)?;
    let keywords = stages::keywords(context)?;
    let prompts = stages::prompts(context, &topics, &keywords)?;
    let prompts = stages::refined(context, prompts)?;
    let prompts = stages::selected(context, prompts)?;
    let dialogues = stages::dialogues(context, &prompts)?;
    let responses = stages::responses(context, &prompts, &dialogues)?;
    let rewards = stages::rewards(context, &dialogues, &responses)?;
    context.servers.close();
    let scores = outputs::score_reports(context, &rewards);
    if !scores.is_empty() {
        (context.say)(&score_table(&scores));
    }
    let rewards: HashMap<_, _> = rewards.into_iter().map(|reward| (reward.id.clone(), reward)).collect();
    let scored = Scored { dialogues: &dialogues, responses: &responses, rewards };
    let kept = stages::filtered(context, &scored)?;
    let pairs = stages::pairs(context, &scored)?;
    let stages = context.summaries();
    let products = Products { kept: &kept, pairs: &pairs, responses: &responses, stages: &stages };
    outputs::write(context, products, scores)
}

/// Keeps other processes out of the folder while the file is open.
fn lock(folder: &Path) -> Result<File, SynthError> {
    let path = folder.join(".lock");
    let file = File::create(&path).map_err(SynthError::file(&path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(error) => {
            let text = format!("another run uses the folder: {error}");
            Err(SynthError::File { path, source: std::io::Error::other(text) })
        }
    }
}
