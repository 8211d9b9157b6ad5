//! Scores, the threshold, and pairs.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::super::endpoint::{CallError, Endpoint, Job, Refusal, short};
use super::super::error::SynthError;
use super::super::export::Turn;
use super::super::journal::Finished;
use super::super::pairs::{Candidate, choose_pair};
use super::super::recipe::{JudgeApi, RewardOptions};
use super::super::records::{DialogueRecord, Kept, Pair, Reject, Response, Reward, Stage};
use super::super::servers::Who;
use super::super::workers::{Context, Item, StagePlan};
use super::{depends, input, of_role, reject};

/// Most responses in one request to the judge.
pub(in super::super) const MOST_TOGETHER: usize = 32;

/// Attribute values of one turn.
type Values = BTreeMap<String, f64>;

/// A request to the judge: a dialogue with each of its turns, or the responses to one prompt, whose shared
/// turns the judge computes once.
enum Subject<'a> {
    Dialogue(&'a DialogueRecord),
    Responses(Vec<&'a Response>),
}

/// Everything that the judge scored.
pub(in super::super) struct Scored<'a> {
    pub(in super::super) dialogues: &'a [DialogueRecord],
    pub(in super::super) responses: &'a [Response],
    /// Rewards by the ids of dialogues and responses.
    pub(in super::super) rewards: HashMap<String, Reward>,
}

/// Scores of dialogues and responses.
pub(in super::super) fn rewards(
    context: &Context<'_>,
    dialogues: &[DialogueRecord],
    responses: &[Response],
) -> Result<Vec<Reward>, SynthError> {
    let recipe = context.recipe;
    let Some(options) = &recipe.reward else { return Ok(Vec::new()) };
    let each = dialogues.iter().map(|dialogue| (dialogue.id.clone(), Subject::Dialogue(dialogue)));
    let together =
        by_prompt(responses).into_iter().map(|(id, all)| (format!("{id}.a"), Subject::Responses(all)));
    let items: Vec<_> =
        each.chain(together).map(|(id, subject)| Item { id, group: 0, input: subject }).collect();
    let plan = StagePlan {
        stage: Stage::Rewards,
        depends: depends([
            ("reward.weights", json!(options.weights)),
            ("roles.judge", of_role(recipe.roles.judge.as_ref())),
            ("the dialogues", input(dialogues)),
            ("the responses", input(responses)),
        ]),
        wanted: Some((dialogues.len() + responses.len()) as u64),
        groups: vec![vec![Who::Judge]],
        items,
    };
    context.run_stage(&plan, |item, endpoints, job, finished| {
        let judge = &endpoints[0];
        match &item.input {
            Subject::Dialogue(dialogue) => {
                let turns = dialogue_values(judge, &dialogue.messages, job);
                let subject = Scoring { judge, options, id: &dialogue.id, messages: &dialogue.messages };
                subject.finish(turns, finished)?;
            }
            Subject::Responses(responses) => {
                for responses in responses.chunks(MOST_TOGETHER) {
                    let all = response_values(judge, responses, job)?;
                    for (response, values) in responses.iter().zip(all) {
                        let messages = &conversation(response);
                        let subject = Scoring { judge, options, id: &response.id, messages };
                        subject.finish(values.map(|values| vec![values]), finished)?;
                    }
                }
            }
        }
        Ok(())
    })
}

/// The conversation of a score.
struct Scoring<'a> {
    judge: &'a Endpoint,
    options: &'a RewardOptions,
    id: &'a str,
    /// The turns that are scored.
    messages: &'a [Turn],
}

impl Scoring<'_> {
    /// Adds the reward, or a reject if the judge refuses the conversation.
    fn finish(
        &self,
        turns: Result<Vec<Values>, CallError>,
        finished: &mut Finished<Reward>,
    ) -> Result<(), CallError> {
        let scored = turns.and_then(|turns| reward(self.judge, self.options, self.id, turns));
        match scored {
            Ok(reward) => finished.records.push(reward),
            Err(CallError::Refused(refusal)) => {
                let refusal = Refusal { messages: self.messages.to_vec(), ..refusal };
                finished.rejects.push(Reject::refused(self.id, refusal));
            }
            Err(fatal) => return Err(fatal),
        }
        Ok(())
    }
}

/// The values of each assistant turn.
fn dialogue_values(judge: &Endpoint, messages: &[Turn], job: &mut Job<'_>) -> Result<Vec<Values>, CallError> {
    match judge.api {
        JudgeApi::Reward => every_turn(judge, messages, job),
        // Assistant turns are the second, the fourth and so on.
        JudgeApi::Chat => {
            (2..=messages.len()).step_by(2).map(|end| by_chat(judge, &messages[..end], job)).collect()
        }
    }
}

/// The values of responses. If the judge refuses all of them together, each is asked about alone, so that
/// one that is too long does not take the others with it.
fn response_values(
    judge: &Endpoint,
    responses: &[&Response],
    job: &mut Job<'_>,
) -> Result<Vec<Result<Values, CallError>>, CallError> {
    let conversations: Vec<Vec<Turn>> = responses.iter().map(|response| conversation(response)).collect();
    if judge.api == JudgeApi::Reward {
        match last_turns(judge, &conversations, job) {
            Ok(values) => return Ok(values.into_iter().map(Ok).collect()),
            Err(CallError::Refused(refusal)) if conversations.len() == 1 => {
                return Ok(vec![Err(CallError::Refused(refusal))]);
            }
            Err(CallError::Refused(_)) => {}
            Err(fatal) => return Err(fatal),
        }
    }
    let alone = |turns: &Vec<Turn>| match judge.api {
        JudgeApi::Reward => {
            last_turns(judge, std::slice::from_ref(turns), job).and_then(|values| first(judge, values))
        }
        JudgeApi::Chat => by_chat(judge, turns, job),
    };
    Ok(conversations.iter().map(alone).collect())
}

fn first(judge: &Endpoint, values: Vec<Values>) -> Result<Values, CallError> {
    values.into_iter().next().ok_or_else(|| judge.fatal("expected one reward; got none".to_owned()))
}

/// Responses by the ids of their prompts, in the order of the first response to each.
fn by_prompt(responses: &[Response]) -> Vec<(&str, Vec<&Response>)> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut all: Vec<(&str, Vec<&Response>)> = Vec::new();
    for response in responses {
        let place = *places.entry(&response.parent).or_insert(all.len());
        match all.get_mut(place) {
            Some((_, group)) => group.push(response),
            None => all.push((&response.parent, vec![response])),
        }
    }
    all
}

fn conversation(response: &Response) -> Vec<Turn> {
    let answer = Turn { role: "assistant".to_owned(), content: response.response.clone() };
    response.prompt.iter().cloned().chain([answer]).collect()
}

fn every_turn(judge: &Endpoint, messages: &[Turn], job: &mut Job<'_>) -> Result<Vec<Values>, CallError> {
    let body = json!({ "model": judge.model, "messages": messages, "every_turn": true });
    let answer = judge.post("/v1/reward", &body, job)?;
    let data = &answer["data"][0];
    match data["turns"].as_array().filter(|turns| !turns.is_empty()) {
        Some(turns) => turns.iter().map(|turn| values(judge, turn)).collect(),
        None => Ok(vec![values(judge, data)?]),
    }
}

fn last_turns(
    judge: &Endpoint,
    conversations: &[Vec<Turn>],
    job: &mut Job<'_>,
) -> Result<Vec<Values>, CallError> {
    let body = json!({ "model": judge.model, "messages_list": conversations });
    let answer = judge.post("/v1/reward", &body, job)?;
    let data = answer["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    if data.len() != conversations.len() {
        let (expected, got) = (conversations.len(), data.len());
        return Err(judge.fatal(format!("expected `data` with {expected} rewards; got {got}")));
    }
    data.iter().map(|reward| values(judge, reward)).collect()
}

fn values(judge: &Endpoint, reward: &Value) -> Result<Values, CallError> {
    let numbers = reward["values"].as_object();
    let values: Option<Values> = numbers.and_then(|numbers| {
        numbers.iter().map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect()
    });
    values.ok_or_else(|| {
        judge.fatal(format!("expected `values` with numbers; got {}", short(&reward.to_string())))
    })
}

/// The values that the hosted API writes as text: `helpfulness:1.2,correctness:0.9` or `reward:-3.1`.
fn by_chat(judge: &Endpoint, messages: &[Turn], job: &mut Job<'_>) -> Result<Values, CallError> {
    let answer = judge.chat(messages, None, 0, job)?;
    let parsed: Option<Values> = answer
        .text
        .split(',')
        .map(|part| {
            let (name, value) = part.split_once(':')?;
            Some((name.trim().to_owned(), value.trim().parse().ok()?))
        })
        .collect();
    parsed.ok_or_else(|| {
        let got = short(&answer.text);
        judge.fatal(format!("expected NAME:NUMBER,… as content; got `{got}`"))
    })
}

/// The reward of a conversation: the weighted sum of the values, the mean over its turns.
fn reward(
    judge: &Endpoint,
    options: &RewardOptions,
    id: &str,
    turns: Vec<Values>,
) -> Result<Reward, CallError> {
    let mut sum = 0.0;
    for values in &turns {
        for (name, weight) in &options.weights {
            let Some(value) = values.get(name) else {
                let got = values.keys().cloned().collect::<Vec<_>>().join(", ");
                return Err(judge.fatal(format!("reward.weights: expected one of {got}; got {name}")));
            };
            sum += weight * value;
        }
    }
    let score = sum / turns.len().max(1) as f64;
    if !score.is_finite() {
        let message = format!("expected a finite score; got {score}");
        return Err(CallError::Refused(Refusal::new(message, &format!("{turns:?}"))));
    }
    Ok(Reward { id: id.to_owned(), score, turns })
}

/// Conversations that reach the threshold: dialogues, and the best response to each prompt. A response that
/// the checker finds wrong is never the best.
pub(in super::super) fn filtered(
    context: &Context<'_>,
    scored: &Scored<'_>,
) -> Result<Vec<Kept>, SynthError> {
    let threshold = context.recipe.reward.as_ref().map(|reward| reward.threshold);
    let judge = |id: &str, parent: &str, messages: Vec<Turn>| {
        let reward = scored.rewards.get(id);
        let raw = messages.last().map(|turn| turn.content.clone());
        match (threshold, reward) {
            (Some(_), None) => Err(reject(id, "no score", raw.as_deref())),
            (Some(least), Some(reward)) if reward.score < least => Err(Reject {
                detail: Some(format!("{} is below {least}", reward.score)),
                ..reject(id, "below the threshold", raw.as_deref())
            }),
            _ => Ok(Kept {
                id: id.to_owned(),
                parent: parent.to_owned(),
                score: reward.map(|reward| reward.score),
                turns: turns_of(reward, &messages),
                messages,
            }),
        }
    };
    let dialogues = scored.dialogues.iter();
    let mut outcomes: Vec<Result<Kept, Reject>> =
        dialogues.map(|dialogue| judge(&dialogue.id, &dialogue.parent, dialogue.messages.clone())).collect();
    let groups = by_prompt(scored.responses);
    let taken = scored.dialogues.len() + groups.len();
    for (parent, responses) in groups {
        let score = |response: &Response| scored.rewards.get(&response.id).map(|reward| reward.score);
        let mut best: Option<&Response> = None;
        for response in responses.iter().copied().filter(|response| response.correct != Some(false)) {
            let is_better = best.is_none_or(|best| match (score(response), score(best)) {
                (Some(score), Some(highest)) => score > highest,
                (Some(_), None) => true,
                _ => false,
            });
            if is_better {
                best = Some(response);
            }
        }
        // Without a judge, ground truth alone says that a response is good.
        let best = best.filter(|best| threshold.is_some() || best.correct == Some(true));
        outcomes.push(match best {
            Some(best) => judge(&best.id, parent, conversation(best)),
            None => Err(no_best(parent, &responses)),
        });
    }
    let (mut kept, mut rejects) = (Vec::new(), Vec::new());
    for outcome in outcomes {
        match outcome {
            Ok(one) => kept.push(one),
            Err(reject) => rejects.push(reject),
        }
    }
    context.write_local(Stage::Filtered, taken, kept, rejects)
}

/// The reject of a prompt none of whose responses is known to be good.
fn no_best(parent: &str, responses: &[&Response]) -> Reject {
    let is_wrong = responses.iter().all(|response| response.correct == Some(false));
    let reason = if is_wrong { "every response is wrong" } else { "neither a score nor a known answer" };
    reject(parent, reason, Some(&texts(responses)))
}

/// The texts of responses as JSON, for the raw text of a reject.
fn texts(responses: &[&Response]) -> String {
    json!(responses.iter().map(|response| &response.response).collect::<Vec<_>>()).to_string()
}

/// Values for each assistant turn; turns before the rated ones have none.
fn turns_of(reward: Option<&Reward>, messages: &[Turn]) -> Vec<Values> {
    let count = messages.iter().filter(|turn| turn.role == "assistant").count();
    let rated = reward.map(|reward| reward.turns.as_slice()).unwrap_or_default();
    let mut all = vec![Values::new(); count.saturating_sub(rated.len())];
    all.extend_from_slice(rated);
    all
}

/// Preference pairs.
pub(in super::super) fn pairs(context: &Context<'_>, scored: &Scored<'_>) -> Result<Vec<Pair>, SynthError> {
    let (mut pairs, mut rejects) = (Vec::new(), Vec::new());
    let groups = by_prompt(scored.responses);
    let taken = groups.len();
    for (parent, responses) in groups {
        let score = |response: &Response| scored.rewards.get(&response.id).map(|reward| reward.score);
        let candidates: Vec<Candidate<'_>> = responses
            .iter()
            .map(|r| Candidate { text: &r.response, score: score(r), correct: r.correct })
            .collect();
        let id = format!("{parent}.p");
        match choose_pair(&candidates, &context.recipe.pairs) {
            Ok(choice) => {
                let (chosen, rejected) = (responses[choice.chosen], responses[choice.rejected]);
                pairs.push(Pair {
                    id,
                    parent: parent.to_owned(),
                    prompt: chosen.prompt.clone(),
                    chosen_id: chosen.id.clone(),
                    rejected_id: rejected.id.clone(),
                    chosen: chosen.response.clone(),
                    rejected: rejected.response.clone(),
                    chosen_score: score(chosen),
                    rejected_score: score(rejected),
                    margin: choice.margin,
                    decided_by: choice.decided_by,
                });
            }
            Err(why) => {
                let scores: Vec<_> = responses
                    .iter()
                    .map(|r| json!({ "id": r.id, "score": score(r), "correct": r.correct }))
                    .collect();
                rejects.push(Reject {
                    id,
                    reason: why.to_string(),
                    detail: Some(json!(scores).to_string()),
                    raw: Some(texts(&responses)),
                });
            }
        }
    }
    context.write_local(Stage::Pairs, taken, pairs, rejects)
}
