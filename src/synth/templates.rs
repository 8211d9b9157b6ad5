//! The texts of requests: Jinja templates, of which a recipe can replace each.

use minijinja::{Environment, UndefinedBehavior, Value, context};
use serde::{Deserialize, Serialize};

/// The templates. `n` is the number of items that a list has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Templates {
    /// Asks for topics; `n`.
    pub topics: String,
    /// Asks for subtopics; `topic`, `n`.
    pub subtopics: String,
    /// Asks for keywords of mathematics; `level`, `n`.
    pub mathematics_keywords: String,
    /// Asks for keywords of programming; `level`, `language`, `n`.
    pub coding_keywords: String,
    /// Asks for open questions; `topic`, `n`.
    pub open_questions: String,
    /// Asks for writing tasks; `topic`, `document_type`, `n`.
    pub writing: String,
    /// Asks for questions over a text; `document`, `n`.
    pub closed_questions: String,
    /// Joins a question and its text to a prompt; `document`, `question`.
    pub closed_prompt: String,
    /// Asks for problems of mathematics; `keyword`, `level`, `n`.
    pub mathematics: String,
    /// Asks for problems of programming; `keyword`, `level`, `language`, `n`.
    pub coding: String,
    /// Asks for more detailed versions of a prompt; `prompt`, `n`.
    pub refine: String,
    /// Asks for the user's next turn; `personality`, and `messages` with `role` and `content`.
    pub user_turn: String,
    /// Follows each request for a list; `n`.
    pub list: String,
}

impl Default for Templates {
    fn default() -> Self {
        let text = str::to_owned;
        Self {
            topics: text(
                "Name {{ n }} broad subjects that people read, ask and write about: everyday life, work, \
                 science, technology, arts, history, society. Each has at most five words, and no two \
                 overlap.",
            ),
            subtopics: text(
                "Name {{ n }} narrower subjects within \"{{ topic }}\". Each has at most eight words and \
                 covers a different side of it.",
            ),
            mathematics_keywords: text(
                "Name {{ n }} concepts or methods of {{ level }} mathematics that problems can be set about. \
                 Each has at most four words.",
            ),
            coding_keywords: text(
                "Name {{ n }} concepts, data structures or parts of the standard library that {{ level }} \
                 programming exercises in {{ language }} can be set about. Each has at most four words.",
            ),
            open_questions: text(
                "Write {{ n }} question{{ 's' if n > 1 else '' }} that a person could ask an assistant about \
                 \"{{ topic }}\". Ask for explanations, comparisons, advice or opinions, not for a single \
                 fact. Each question can be understood by itself and differs from others in what it asks.",
            ),
            writing: text(
                "Write {{ n }} task{{ 's' if n > 1 else '' }} for an assistant: to write a text of the type \
                 \"{{ document_type }}\" about \"{{ topic }}\". Each task says for whom the text is and \
                 gives at least one requirement for its content or form.",
            ),
            closed_questions: text(
                "Read this text:\n\n{{ document }}\n\nWrite {{ n }} question{{ 's' if n > 1 else '' }} or \
                 task{{ 's' if n > 1 else '' }} that can be answered from the text alone: facts, summaries, \
                 conclusions, comparisons, rewriting. Do not repeat the text.",
            ),
            closed_prompt: text("{{ document }}\n\n{{ question }}"),
            mathematics: text(
                "Write {{ n }} mathematics problem{{ 's' if n > 1 else '' }} of {{ level }} \
                 difficulty about \"{{ keyword }}\". Each problem states everything that is needed and \
                 has one answer. Do not give solutions.",
            ),
            coding: text(
                "Write {{ n }} programming exercise{{ 's' if n > 1 else '' }} of {{ level }} difficulty \
                 in {{ language }} about \"{{ keyword }}\". Each states input, output and at least one \
                 special case. Do not give solutions.",
            ),
            refine: text(
                "Here is a request to an assistant:\n\n{{ prompt }}\n\nRewrite it \
                 {{ 'in ' ~ n ~ ' different ways, each ' if n > 1 else '' }}so that it is more specific: \
                 add a situation, a purpose, a limit or a wished-for form. Keep what the request is \
                 about, and do not answer it.",
            ),
            user_turn: text(concat!(
                "You play a person who talks with an assistant. You are {{ personality }}.\n\n",
                "The conversation so far:\n\n{% for message in messages %}",
                "{{ 'You' if message.role == 'user' else 'Assistant' }}: {{ message.content }}\n\n",
                "{% endfor %}Write your next message and nothing else. Go on from the assistant's last ",
                "message with a question or a request. Neither thank nor praise.",
            )),
            list: text(concat!(
                "Answer in JSON: an object with the key \"items\", whose value is a list of {{ n }} ",
                "text{{ 's' if n > 1 else '' }}."
            )),
        }
    }
}

/// A template that cannot be used.
#[derive(Debug)]
pub(super) struct TemplateError {
    /// Its key.
    pub(super) name: &'static str,
    /// The fault.
    pub(super) message: String,
}

impl Templates {
    fn all(&self) -> [(&'static str, &str, Value); 13] {
        let keyword = context! { keyword => "k", level => "l", language => "p", n => 1 };
        let messages =
            context! { personality => "p", messages => vec![context! { role => "user", content => "c" }] };
        [
            ("topics", &self.topics, context! { n => 1 }),
            ("subtopics", &self.subtopics, context! { topic => "t", n => 1 }),
            ("mathematics_keywords", &self.mathematics_keywords, context! { level => "l", n => 1 }),
            ("coding_keywords", &self.coding_keywords, context! { level => "l", language => "p", n => 1 }),
            ("open_questions", &self.open_questions, context! { topic => "t", n => 1 }),
            ("writing", &self.writing, context! { topic => "t", document_type => "d", n => 1 }),
            ("closed_questions", &self.closed_questions, context! { document => "d", n => 1 }),
            ("closed_prompt", &self.closed_prompt, context! { document => "d", question => "q" }),
            ("mathematics", &self.mathematics, context! { keyword => "k", level => "l", n => 1 }),
            ("coding", &self.coding, keyword),
            ("refine", &self.refine, context! { prompt => "p", n => 1 }),
            ("user_turn", &self.user_turn, messages),
            ("list", &self.list, context! { n => 1 }),
        ]
    }

    /// Renders each template with all of its variables.
    pub(super) fn check(&self) -> Result<(), TemplateError> {
        for (name, template, variables) in self.all() {
            if let Err(error) = rendered(template, &variables) {
                let known = variables.try_iter().into_iter().flatten().map(|name| name.to_string());
                let known = known.collect::<Vec<_>>().join(", ");
                let message = format!("expected a Jinja template with the variables {known}; {error:#}");
                return Err(TemplateError { name, message: message.replace('\n', " ") });
            }
        }
        Ok(())
    }

    /// A request for a list.
    pub(super) fn list_request(&self, template: &str, variables: &Value, n: usize) -> String {
        format!("{}\n\n{}", render(template, variables), render(&self.list, &context! { n }))
    }
}

/// Renders a template that [`Templates::check`] has tried. A value for which it fails is a fault of the
/// template that the trial cannot find, such as an index; its place has the error's text.
pub(super) fn render(template: &str, variables: &Value) -> String {
    rendered(template, variables).unwrap_or_else(|error| error.to_string())
}

fn rendered(template: &str, variables: &Value) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_keep_trailing_newline(true);
    environment.render_str(template, variables)
}
