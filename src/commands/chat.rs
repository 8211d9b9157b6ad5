//! `octant chat`: a conversation in the terminal with the model of a running server. In a pipe, standard
//! input is one message, and the answer alone goes to standard output.

mod answer;
mod command;
mod conversation;
mod load;
mod screen;
mod visible;

use std::io::{IsTerminal, Read};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::ChatArgs;
use crate::http_client::Target;
use crate::stdio::Log;
use crate::stdio::results;
use answer::{Answer, AnswerError, AnswerStream, Ending};
use command::Command;
use conversation::{Conversation, NothingToDo};
use screen::Screen;
use visible::visible;

/// Exit status after Ctrl-C at the prompt, as of a program that SIGINT ends.
const INTERRUPTED: u8 = 130;
/// Inputs that the arrow keys bring back.
const HISTORY: usize = 1000;
/// Time for closing the connection of a stopped answer at the end of the process.
const CLOSING: Duration = Duration::from_millis(200);

/// Chats until the input ends. Exits with status 1 if the server cannot be reached, or if the one answer of a
/// pipe fails.
pub fn run(args: &ChatArgs, log: &Log) -> anyhow::Result<ExitCode> {
    // A name without a scheme is a host.
    let url = if args.url.contains("://") { args.url.clone() } else { format!("http://{}", args.url) };
    let key = args.api_key.as_deref().filter(|key| !key.is_empty());
    let target = Target::parse(&url, key)?;
    // The worker closes the connection of an answer that was stopped.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let is_interactive = std::io::stdin().is_terminal() && results::is_terminal();
    let piped = if is_interactive { None } else { Some(read_all()?) };
    let model = match &args.model {
        Some(name) => name.clone(),
        None => runtime.block_on(answer::first_model(&target)).with_context(|| model_hint(args))?,
    };
    let conversation = Conversation::new(args, model);
    let mut chat = Chat { target, conversation, screen: Screen::new(is_interactive), runtime };
    let code = match piped {
        None => chat.talk()?,
        Some(message) => chat.answer_once(message, log)?,
    };
    chat.runtime.shutdown_timeout(CLOSING);
    Ok(code)
}

fn model_hint(args: &ChatArgs) -> String {
    format!("no model from {}", visible(&args.url))
}

/// Reads the one message of a pipe.
fn read_all() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).context("standard input")?;
    let text = String::from_utf8(bytes).context("standard input: expected UTF-8")?;
    let message = text.strip_suffix('\n').unwrap_or(&text);
    ensure!(!message.trim().is_empty(), "standard input: expected a message, got nothing");
    Ok(message.to_owned())
}

/// A conversation with a server.
struct Chat {
    target: Target,
    conversation: Conversation,
    screen: Screen,
    runtime: Runtime,
}

impl Chat {
    /// Prints the answer to one message, and its figures on standard error.
    fn answer_once(&mut self, message: String, log: &Log) -> anyhow::Result<ExitCode> {
        self.conversation.ask(message);
        let answer = self.stream()?;
        self.screen.end_line()?;
        let figures = answer.figures();
        if let Ending::Failed(error) = answer.ending {
            bail!(error);
        }
        log.print(&format!("{figures}\n"));
        Ok(ExitCode::SUCCESS)
    }

    /// Reads messages and commands, and answers them.
    fn talk(&mut self) -> anyhow::Result<ExitCode> {
        let config = Config::builder().auto_add_history(true).build();
        let mut editor: Editor<(), MemHistory> = Editor::with_history(config, MemHistory::new())?;
        editor.set_max_history_size(HISTORY)?;
        let model = visible(self.conversation.model());
        self.screen.note(&format!(
            "{model} at {}. /help lists the commands; Ctrl-C stops an answer, Ctrl-D ends the chat.",
            visible(self.target.authority())
        ))?;
        loop {
            let line = match read_message(&mut editor) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => return Ok(ExitCode::from(INTERRUPTED)),
                Err(ReadlineError::Eof) => return Ok(ExitCode::SUCCESS),
                Err(error) => return Err(error).context("the terminal"),
            };
            match Command::parse(&line) {
                Command::Nothing => {}
                Command::Quit => return Ok(ExitCode::SUCCESS),
                command => self.obey(command)?,
            }
        }
    }

    fn obey(&mut self, command: Command) -> anyhow::Result<()> {
        let ready = match command {
            Command::Message(text) => {
                self.conversation.ask(text);
                Ok(())
            }
            Command::Retry => self.conversation.retry(),
            Command::Continue => self.conversation.resume(),
            Command::Clear => {
                self.conversation.clear();
                return self.screen.note("The conversation is empty.");
            }
            Command::SetSystem(text) => {
                self.conversation.set_system(text);
                return self.screen.note(&self.conversation.describe_system());
            }
            Command::ShowSystem => return self.screen.note(&self.conversation.describe_system()),
            Command::Logprobs(on) => {
                // Without colours nothing would show them.
                self.conversation.set_logprobs(on && self.screen.is_colored());
                return if on { self.screen.legend() } else { self.screen.note("Tokens have no colours.") };
            }
            Command::Load => return self.show_load(),
            Command::Help => return self.screen.note(command::HELP),
            Command::Unknown(name) => {
                let text = format!("unknown command {}; /help lists the commands", visible(&name));
                return self.screen.error(&text);
            }
            Command::Nothing | Command::Quit => return Ok(()),
        };
        match ready {
            Ok(()) => self.answer(),
            Err(NothingToDo(why)) => self.screen.error(why),
        }
    }

    fn show_load(&self) -> anyhow::Result<()> {
        match self.runtime.block_on(load::load(&self.target)) {
            Ok(load) => self.screen.note(&load),
            Err(error) => self.screen.error(&error.to_string()),
        }
    }

    /// Shows the next answer with its figures, or the error.
    fn answer(&mut self) -> anyhow::Result<()> {
        let answer = self.stream()?;
        self.screen.end_line()?;
        let figures = answer.figures();
        match answer.ending {
            Ending::Complete => self.screen.note(&figures),
            Ending::Stopped => self.screen.note(&format!("stopped; {figures}; /continue goes on")),
            Ending::Failed(error) => self.screen.error(&format!("{:#}", anyhow::Error::from(error))),
        }
    }

    /// Prints the next answer while it arrives, and adds it to the conversation. On a terminal, Ctrl-C stops
    /// it; in a pipe, Ctrl-C ends the process.
    fn stream(&mut self) -> anyhow::Result<Answer> {
        let Self { target, conversation, screen, runtime } = self;
        let body = Value::Object(conversation.request()).to_string();
        let answer = runtime.block_on(async {
            let mut interrupt = match screen.is_interactive() {
                true => Some(signal(SignalKind::interrupt())?),
                false => None,
            };
            let stopped = async {
                match &mut interrupt {
                    Some(signal) => _ = signal.recv().await,
                    None => std::future::pending().await,
                }
            };
            let mut stream = AnswerStream::new(target);
            let mut print = |text: &str, logprob| screen.print(&visible(text), logprob);
            let ended = tokio::select! {
                ended = stream.run(body.into(), &mut print) => Some(ended),
                () = stopped => None,
            };
            match ended {
                Some(Err(AnswerError::Output(error))) => Err(anyhow::Error::from(error)),
                Some(ended) => Ok(stream.finish(ended.map_or_else(Ending::Failed, |()| Ending::Complete))),
                None => Ok(stream.finish(Ending::Stopped)),
            }
        })?;
        conversation.answered(&answer.text);
        Ok(answer)
    }
}

/// Reads a message. A backslash at the end of a line continues it on the next line.
fn read_message(editor: &mut Editor<(), MemHistory>) -> Result<String, ReadlineError> {
    let mut message = editor.readline("> ")?;
    while let Some(line) = message.strip_suffix('\\') {
        message = format!("{line}\n{}", editor.readline("… ")?);
    }
    Ok(message)
}
