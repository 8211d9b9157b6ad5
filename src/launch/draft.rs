//! The draft model of `--speculate`: what must agree with the model, and what it needs.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::comm::Message;
use crate::config::ServeArgs;
use crate::device::Layout;
use crate::model::{ModelConfig, StepRoom};
use crate::runner::{MemoryNeeds, gib};
use crate::text::Tokenizer;

/// A draft model before its weights are read.
pub(crate) struct PreparedDraft {
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// The architecture. Its longest sequence is at most the model's.
    pub(crate) model: ModelConfig,
    /// The memory that each rank needs for it.
    pub(crate) needs: MemoryNeeds,
}

/// The communicators of a server, one for each rank.
pub(crate) struct Groups<C> {
    /// Those of the model.
    pub(crate) target: Vec<C>,
    /// Those of the draft model, if there is one.
    pub(crate) draft: Option<Vec<C>>,
}

/// The largest message between the ranks of each model.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only a build with CUDA reads it"))]
pub(crate) struct LargestMessages {
    /// That of the model.
    pub(crate) target: Message,
    /// That of the draft model, if there is one.
    pub(crate) draft: Option<Message>,
}

impl PreparedDraft {
    /// Reads the draft model's configuration. `None` without one.
    ///
    /// # Errors
    /// The file cannot be read, or one of the models does not generate.
    pub(super) fn new(
        config: &ServeArgs,
        model: &ModelConfig,
        layout: &Layout,
        room: &StepRoom,
    ) -> anyhow::Result<Option<Self>> {
        let Some(dir) = config.speculation.speculate.draft_model() else { return Ok(None) };
        ensure!(model.reward.is_none(), "expected a model that generates; this one scores");
        let draft = ModelConfig::from_dir(dir)?;
        ensure!(
            draft.reward.is_none(),
            "{}: expected a draft model that generates; this one scores",
            dir.display()
        );
        if draft.max_positions < model.max_positions {
            tracing::warn!(
                "{}: no drafts after {} tokens of a sequence, the most of the draft model",
                dir.display(),
                draft.max_positions
            );
        }
        let draft = draft.drafting_for(model);
        let share = draft.share(room.ranks).map_err(anyhow::Error::msg)?;
        let (precision, kv) = (config.model.quantization, config.model.kv_dtype());
        let needs = MemoryNeeds::of_draft(&share, layout, precision, kv, room);
        Ok(Some(Self { dir: dir.clone(), model: draft, needs }))
    }

    /// Checks that the draft model's token ids mean what those of the model mean. `vocab` is the number of
    /// ids that the model uses. A directory without a tokenizer is taken to have the model's.
    ///
    /// # Errors
    /// The vocabularies or the tokenizers differ; the error names both directories.
    pub(super) fn check_tokenizer(
        &self,
        tokenizer: &Tokenizer,
        dir: &Path,
        vocab: usize,
    ) -> anyhow::Result<()> {
        let (own, other) = (self.dir.display(), dir.display());
        ensure!(
            self.model.vocab >= vocab,
            "the draft model {own} has a vocabulary of {}; expected at least the {vocab} ids of {other}",
            self.model.vocab
        );
        if !self.dir.join("tokenizer.json").exists() {
            return Ok(());
        }
        let drafts = Tokenizer::from_dir(&self.dir).with_context(|| format!("the draft model {own}"))?;
        let ids = u32::try_from(vocab).unwrap_or(u32::MAX);
        let differs = |id: &u32| {
            drafts.token_bytes(*id) != tokenizer.token_bytes(*id)
                || drafts.is_special(*id) != tokenizer.is_special(*id)
        };
        if let Some(id) = (0..ids).find(differs) {
            anyhow::bail!(
                "the draft model {own} has another tokenizer than {other}: token {id} is {:?} there and {:?} \
                 here",
                drafts.token_str(id),
                tokenizer.token_str(id)
            );
        }
        Ok(())
    }

    /// The draft model's needs, for the error if it does not fit beside the model.
    pub(super) fn shown_needs(&self) -> String {
        shown_needs(&self.dir.display().to_string(), &self.needs)
    }
}

/// The needs of a draft model, for the error if it does not fit beside the model.
pub(crate) fn shown_needs(draft_model: &str, needs: &MemoryNeeds) -> String {
    format!(
        "the draft model {draft_model} needs {} of weights, {} of working memory and {} for each KV block of \
         64 tokens",
        gib(needs.weights),
        gib(needs.workspace()),
        gib(needs.block)
    )
}
