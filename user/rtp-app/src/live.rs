//! Live figures on a terminal: a few lines on standard error that are redrawn in place.
//!
//! What lives here: drawing. The lines themselves come from [`super::text`], which renders the same
//! structs that the JSON is made of. Nothing is drawn when standard error is not a terminal.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the figures are redrawn.
pub const REDRAW: Duration = Duration::from_millis(200);

/// Lines on the terminal.
#[derive(Debug)]
pub struct Panel {
    all: MultiProgress,
    lines: Vec<ProgressBar>,
}

impl Panel {
    /// A panel on standard error; hidden when `show` is false or no terminal is there.
    pub fn new(show: bool) -> Self {
        let target = if show {
            ProgressDrawTarget::stderr_with_hz(20)
        } else {
            ProgressDrawTarget::hidden()
        };
        Self { all: MultiProgress::with_draw_target(target), lines: Vec::new() }
    }

    /// True when somebody can see it.
    pub fn visible(&self) -> bool {
        !self.all.is_hidden()
    }

    /// Shows these lines in place of the last ones.
    pub fn show(&mut self, lines: &[String]) {
        while self.lines.len() < lines.len() {
            let line = self.all.add(ProgressBar::new_spinner());
            line.set_style(
                ProgressStyle::with_template("{msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            self.lines.push(line);
        }
        while self.lines.len() > lines.len() {
            if let Some(line) = self.lines.pop() {
                line.finish_and_clear();
            }
        }
        for (line, text) in self.lines.iter().zip(lines) {
            line.set_message(text.clone());
            line.tick();
        }
    }

    /// Prints a line above the panel (to standard error when the panel is hidden).
    pub fn note(&self, text: &str) {
        if self.visible() {
            // A terminal that has gone away shows nothing; the command goes on.
            let _ = self.all.println(text);
        } else {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// Takes the lines away.
    pub fn clear(&mut self) {
        for line in self.lines.drain(..) {
            line.finish_and_clear();
        }
    }
}
