//! The filter of log lines by level and by module: `--log-level`.

use std::str::FromStr;

use anyhow::bail;
use tracing_subscriber::filter::{LevelFilter, Targets};

/// The most verbose level that is logged, for all modules and for single ones.
#[derive(Debug, Clone, PartialEq)]
pub struct LogFilter(pub(super) Targets);

/// Target of the lines that answer Ctrl-C. Every level shows them.
const INTERRUPT: &str = "octant::interrupt";

const EXPECTED: &str =
    "expected off, error, warn, info, debug or trace, or MODULE=LEVEL, such as info,octant=debug";

/// Parses levels and `MODULE=LEVEL`, separated by commas. Modules without a level of their own have the level
/// that stands alone, or `error` if there is none. An empty text is `info`.
impl FromStr for LogFilter {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text.trim().is_empty() {
            return "info".parse();
        }
        let mut targets = Targets::new().with_default(LevelFilter::ERROR);
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                None => targets = targets.with_default(level(part)?),
                Some((module, _)) if !is_module(module.trim()) => bail!("{EXPECTED}; got `{part}`"),
                Some((module, wanted)) => targets = targets.with_target(module.trim(), level(wanted.trim())?),
            }
        }
        Ok(Self(targets.with_target(INTERRUPT, LevelFilter::WARN)))
    }
}

fn level(text: &str) -> anyhow::Result<LevelFilter> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" | "warning" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => bail!("{EXPECTED}; got `{text}`"),
    })
}

/// Whether `text` can be the path of a module.
fn is_module(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte))
}
