//! The errors of a run.

use std::io;
use std::path::PathBuf;

use super::decontaminate::DecontaminationError;

/// The reason why a run ends early. What was made until then is on the disk.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    /// The recipe is wrong.
    #[error("{}:{line}: {message}", path.display())]
    Recipe {
        /// The recipe.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key, expected and got.
        message: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A line of a file is not what this version writes.
    #[error("{}:{line}: {message}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Expected and got.
        message: String,
    },
    /// A stage was made with other settings.
    #[error(
        "{}: made before {changed} changed; --restart makes this stage and those after it again, and \
         another --out keeps it",
        path.display()
    )]
    Changed {
        /// The stage's file.
        path: PathBuf,
        /// The keys of the recipe that changed.
        changed: String,
    },
    /// An endpoint cannot be used.
    #[error("{role}: {message}")]
    Endpoint {
        /// The role, as in the recipe.
        role: String,
        /// The fault.
        message: String,
    },
    /// A stage made nothing, so that those after it have no input.
    #[error("{stage}: nothing was made of {taken} items; {why}")]
    Empty {
        /// The stage.
        stage: &'static str,
        /// Items it started from.
        taken: usize,
        /// The reason of the first reject.
        why: String,
    },
    /// Test sets cannot be used.
    #[error(transparent)]
    Decontamination(#[from] DecontaminationError),
    /// The run was told to stop.
    #[error("interrupted; run the same command again to resume")]
    Interrupted,
}

impl SynthError {
    pub(super) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
