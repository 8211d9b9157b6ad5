//! Progress bars on a terminal, drawn by the log's thread below the lines of the log.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

use super::queue::Queue;

/// Redraws per second.
const REDRAWS: u8 = 20;
/// Columns of a terminal that does not know its width.
const DEFAULT_WIDTH: u16 = 80;

/// Makes progress bars if standard error is a terminal.
#[derive(Debug, Clone, Default)]
pub(crate) struct ProgressBars(Option<Arc<Queue>>);

impl ProgressBars {
    pub(super) fn new(queue: &Arc<Queue>) -> Self {
        Self(queue.is_terminal().then(|| Arc::clone(queue)))
    }

    /// A bar with this template; `None` if standard error is not a terminal.
    ///
    /// # Panics
    /// If the template is invalid.
    pub(crate) fn bar(&self, length: Option<u64>, template: &str) -> Option<ProgressBar> {
        let terminal = BarTerminal { queue: Arc::clone(self.0.as_ref()?), line: Mutex::default() };
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(terminal), REDRAWS);
        let style = ProgressStyle::with_template(template).expect("the template is valid");
        Some(ProgressBar::with_draw_target(length, target).with_style(style))
    }

    /// Removes a bar, and waits a limited time until it is gone, so that a result can be printed.
    pub(crate) fn remove(&self, bar: &ProgressBar) {
        bar.finish_and_clear();
        if let Some(queue) = &self.0 {
            queue.flush();
        }
    }
}

/// A terminal that shows a bar of one line.
#[derive(Debug)]
struct BarTerminal {
    queue: Arc<Queue>,
    /// Text drawn since the last flush.
    line: Mutex<String>,
}

impl BarTerminal {
    fn line(&self) -> MutexGuard<'_, String> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TermLike for BarTerminal {
    fn width(&self) -> u16 {
        let size = rustix::termios::tcgetwinsize(self.queue.stream());
        size.map(|size| size.ws_col).ok().filter(|columns| *columns > 0).unwrap_or(DEFAULT_WIDTH)
    }

    fn move_cursor_up(&self, _lines: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _lines: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _columns: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _columns: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.line().push_str(text);
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.line().clear();
        Ok(())
    }

    /// Replaces the drawn bar. A bar wider than the terminal is cut, since the log's thread clears one line.
    fn flush(&self) -> io::Result<()> {
        let line = std::mem::take(&mut *self.line());
        let columns = usize::from(self.width()).saturating_sub(1);
        self.queue.set_bar(line.trim_end().chars().take(columns).collect());
        Ok(())
    }
}
