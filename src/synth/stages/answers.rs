//! Dialogues with a simulated user, and several responses to each prompt.

use minijinja::context;
use regex::Regex;
use serde_json::json;

use super::super::choice::chosen;
use super::super::endpoint::{CallError, Endpoint, Job};
use super::super::error::SynthError;
use super::super::export::Turn;
use super::super::journal::Finished;
use super::super::recipe::Dialogues;
use super::super::records::{DialogueRecord, Prompt, Reject, Response, Stage, with_turns};
use super::super::servers::Who;
use super::super::templates::render;
use super::super::workers::{Context, Item, StagePlan};
use super::{depends, input, of_role, reject};

fn turn(role: &str, content: &str) -> Turn {
    Turn { role: role.to_owned(), content: content.to_owned() }
}

/// Conversations that begin with the prompts.
pub(in super::super) fn dialogues(
    context: &Context<'_>,
    prompts: &[Prompt],
) -> Result<Vec<DialogueRecord>, SynthError> {
    let recipe = context.recipe;
    let Some(dialogues) = &recipe.dialogues else { return Ok(Vec::new()) };
    let most = dialogues.most.unwrap_or(usize::MAX);
    let picked = chosen(prompts, most, |id| context.seed(&format!("dialogues.most {id}")));
    let chosen: Vec<&Prompt> =
        prompts.iter().zip(picked).filter(|(_, is_picked)| *is_picked).map(|(prompt, _)| prompt).collect();
    let assistant = recipe.roles.responders.first();
    let depends = depends([
        ("seed", json!(recipe.seed)),
        ("dialogues", json!(dialogues)),
        ("templates.user_turn", json!(recipe.templates.user_turn)),
        ("roles.user", of_role(recipe.roles.user.as_ref())),
        ("roles.responders", of_role(assistant)),
        ("the prompts", input(&chosen)),
    ]);
    let items = chosen.iter().enumerate().map(|(number, prompt)| {
        let personality = &dialogues.personalities[number % dialogues.personalities.len()];
        Item { id: format!("{}.d", prompt.id), group: 0, input: (*prompt, personality.as_str()) }
    });
    let items: Vec<_> = items.collect();
    let plan = StagePlan {
        stage: Stage::Dialogues,
        depends,
        wanted: Some(items.len() as u64),
        groups: vec![vec![Who::Responder(0), Who::User]],
        items,
    };
    let cut: Vec<Regex> = dialogues.cut.iter().filter_map(|pattern| Regex::new(pattern).ok()).collect();
    let model = assistant.map(|role| role.model.clone()).unwrap_or_default();
    context.run_stage(&plan, |item, endpoints, job, finished| {
        let (prompt, personality) = item.input;
        let mut talk = Talk { context, options: dialogues, cut: &cut, id: &item.id, messages: Vec::new() };
        talk.messages.push(turn("user", &prompt.prompt));
        if !talk.run(personality, endpoints, job, finished)? {
            return Ok(());
        }
        finished.records.push(DialogueRecord {
            id: item.id.clone(),
            parent: prompt.id.clone(),
            personality: personality.to_owned(),
            model: model.clone(),
            messages: talk.messages,
        });
        Ok(())
    })
}

/// A conversation under way.
struct Talk<'a> {
    context: &'a Context<'a>,
    options: &'a Dialogues,
    /// Texts that are cut from the user's turns.
    cut: &'a [Regex],
    id: &'a str,
    messages: Vec<Turn>,
}

impl Talk<'_> {
    /// Both sides in turn. False if the conversation is rejected.
    fn run(
        &mut self,
        personality: &str,
        endpoints: &[Endpoint],
        job: &mut Job<'_>,
        finished: &mut Finished<DialogueRecord>,
    ) -> Result<bool, CallError> {
        for number in 0..self.options.turns {
            if number > 0 && !self.user_turn(personality, &endpoints[1], job, finished)? {
                return Ok(false);
            }
            let seed = self.context.seed(&format!("{}.assistant{number}", self.id));
            let answer = endpoints[0].chat(&self.messages, None, seed, job)?;
            let reason = if answer.text.trim().is_empty() {
                Some("empty answer")
            } else if answer.is_unfinished() && !self.options.keep_unfinished {
                Some("unfinished answer")
            } else {
                None
            };
            if let Some(reason) = reason {
                finished.rejects.push(self.reject(reason, &answer.text));
                return Ok(false);
            }
            self.messages.push(turn("assistant", answer.text.trim()));
        }
        Ok(true)
    }

    fn user_turn(
        &mut self,
        personality: &str,
        user: &Endpoint,
        job: &mut Job<'_>,
        finished: &mut Finished<DialogueRecord>,
    ) -> Result<bool, CallError> {
        let variables = context! { personality, messages => self.messages };
        let text = render(&self.context.recipe.templates.user_turn, &variables);
        let seed = self.context.seed(&format!("{}.user{}", self.id, self.messages.len()));
        let answer = user.chat(&[turn("user", &text)], None, seed, job);
        // The request's one turn has the conversation as a text; the reject has its turns.
        let answer = answer.map_err(|error| error.with_turns(&self.messages))?;
        let cut = |text: String, pattern: &Regex| pattern.replace_all(&text, "").into_owned();
        let said = self.cut.iter().fold(answer.text.trim().to_owned(), cut);
        if said.trim().is_empty() {
            finished.rejects.push(self.reject("empty turn of the user", &answer.text));
            return Ok(false);
        }
        self.messages.push(turn("user", said.trim()));
        Ok(true)
    }

    /// The reject of this conversation, with its turns and the reply that ended it.
    fn reject(&self, reason: &str, reply: &str) -> Reject {
        reject(self.id, reason, Some(&with_turns(&self.messages, reply)))
    }
}

/// A response to write.
struct Wish {
    prompt: Vec<Turn>,
    parent: String,
    answer: Option<String>,
    model: String,
}

/// Several responses to each prompt and, if the recipe wants it, to the first three turns of dialogues.
pub(in super::super) fn responses(
    context: &Context<'_>,
    prompts: &[Prompt],
    dialogues: &[DialogueRecord],
) -> Result<Vec<Response>, SynthError> {
    let recipe = context.recipe;
    let Some(responses) = &recipe.responses else { return Ok(Vec::new()) };
    let single = prompts
        .iter()
        .map(|prompt| (prompt.id.clone(), vec![turn("user", &prompt.prompt)], prompt.answer.clone()));
    let two_turn = dialogues.iter().filter(|dialogue| responses.two_turn && dialogue.messages.len() > 3);
    let two_turn = two_turn.map(|dialogue| (dialogue.id.clone(), dialogue.messages[..3].to_vec(), None));
    let mut items = Vec::new();
    for (parent, prompt, answer) in single.chain(two_turn) {
        for (responder, role) in recipe.roles.responders.iter().enumerate() {
            for number in 0..responses.per_responder {
                let wish = Wish {
                    prompt: prompt.clone(),
                    parent: parent.clone(),
                    answer: answer.clone(),
                    model: role.model.clone(),
                };
                let id = format!("{parent}.a{responder}.{number}");
                items.push(Item { id, group: responder, input: wish });
            }
        }
    }
    let asked: Vec<_> = items.iter().map(|item| (&item.id, &item.input.prompt, &item.input.answer)).collect();
    let roles: Vec<_> = recipe.roles.responders.iter().map(|role| of_role(Some(role))).collect();
    let plan = StagePlan {
        stage: Stage::Responses,
        depends: depends([
            ("seed", json!(recipe.seed)),
            ("responses", json!(responses)),
            ("answers", json!(recipe.answers)),
            ("roles.responders", json!(roles)),
            ("the prompts", input(&asked)),
        ]),
        wanted: Some(items.len() as u64),
        groups: (0..recipe.roles.responders.len()).map(|number| vec![Who::Responder(number)]).collect(),
        items,
    };
    let checker = recipe.answers.as_ref().and_then(|checker| checker.compile().ok());
    context.run_stage(&plan, |item, endpoints, job, finished| {
        let wish = &item.input;
        let answer = endpoints[0].chat(&wish.prompt, None, context.seed(&item.id), job)?;
        let text = answer.text.trim();
        if text.is_empty() {
            finished.rejects.push(reject(&item.id, "empty answer", Some(&answer.text)));
            return Ok(());
        }
        if answer.is_unfinished() && !responses.keep_unfinished {
            finished.rejects.push(reject(&item.id, "unfinished answer", Some(&answer.text)));
            return Ok(());
        }
        let truth = checker.as_ref().zip(wish.answer.as_deref());
        finished.records.push(Response {
            id: item.id.clone(),
            parent: wish.parent.clone(),
            model: wish.model.clone(),
            prompt: wish.prompt.clone(),
            response: text.to_owned(),
            finish_reason: answer.finish_reason.clone(),
            correct: truth.map(|(checker, answer)| checker.is_right(text, answer)),
        });
        Ok(())
    })
}
